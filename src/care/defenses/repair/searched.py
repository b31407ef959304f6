"""What each preset leaves open, for a search on validation: values of its settings, its own first.

Places aren't among them, which a diagnosis recommends (`care.pipeline.care_settings`). A gate's
thresholds are left open where channels act through it; with monitors it isn't asked, since channels
are then closed after an alarm alone, and the false alarms that monitors may raise are in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from care.defenses.repair.attribution import AttributionConfig
from care.defenses.repair.presets import Preset, RepairConfig

Options = Mapping[str, Any]

_STRENGTHS: Mapping[Preset, tuple[float, ...]] = {
    "paper": (1.0, 0.5, 2.0, 4.0),
    "official": (4.0, 1.0, 2.0),
    "corrected": (1.2, 1.0, 1.6, 2.0),
}
_RANKS: Mapping[Preset, tuple[int | str, ...]] = {
    "paper": ("auto", 4, 16, 64),
    "official": (64, 4, 16),
}


def searched(preset: Preset, config: RepairConfig) -> dict[str, tuple[Any, ...]]:
    """The values that are tried of each setting of a preset; `config` is its configuration, with
    or without monitors."""
    found: dict[str, tuple[Any, ...]] = {"strength": _STRENGTHS[preset], "beta": (1.0, 0.5)}
    if config.directions == "activations":
        found |= {"rank": _RANKS[preset], "beta": (1.0, 0.5, 0.0), "tokens": (1.0, 2.0, 4.0)}
    if config.monitors is not None:
        found["false_alarms"] = (0.05, 0.02, 0.1)
    elif config.gate is not None:
        found |= {"quantile": (0.97, 0.9, 0.95, 0.98), "ramp": (0.5, 0.25, 0.75)}
    return found


def with_options(config: RepairConfig, options: Options) -> RepairConfig:
    """The configuration with these settings; what isn't one of `searched` is left to the caller.

    `rank` is K, `tokens` multiplies the shares of tokens that moments are taken over,
    `false_alarms` is the monitors' share, `quantile` and `ramp` are the gate's.
    """
    changed: dict[str, Any] = {name: options[name] for name in ("strength", "beta")}
    if "rank" in options:
        changed["subspace"] = replace(config.subspace, rank=options["rank"])
    if "tokens" in options and config.attribution is not None:
        changed["attribution"] = _more(config.attribution, options["tokens"])
    if "false_alarms" in options and config.monitors is not None:
        changed["monitors"] = replace(config.monitors, false_alarms=options["false_alarms"])
    if "quantile" in options and config.gate is not None:
        changed["gate"] = replace(config.gate, quantile=options["quantile"], ramp=options["ramp"])
    return replace(config, **changed)


def _more(config: AttributionConfig, times: float) -> AttributionConfig:
    shares = {
        name: min(1.0, times * getattr(config, name)) for name in ("visual_share", "text_share")
    }
    return replace(config, **shares)
