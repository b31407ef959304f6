"""Which repairs are tried, and which of them is taken: one rule, on the validation split alone.

The channel scan says at which sites the unsafe channels of each modality can be closed. The best
site of either modality, each runner-up with the other's best, and how readily gates open, make the
candidates. The margins of the rule are half of what a repair may cost on the test split, since the
best of several candidates looks better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from care.anatomy import Site
from care.fitting import Fitter, chosen_sites
from care.repair import Modality, Repair

RULE = (
    "least mean ASR on validation among the candidates that lose at most 1 point of utility, 1.5 "
    "points of answered harmless requests and 1.5 points of coherence; if none does, the one that "
    "loses least beyond that"
)
"""How the repair is chosen, in words."""

QUANTILES = (0.97, 0.95, 0.98)
"""Shares of benign activations for which gates stay shut that are tried at the best sites; the
first of them is tried at the runners-up."""

MARGINS = {"utility": 0.01, "answered": 0.015, "degenerate": 0.015}
"""What a candidate may lose on validation, as shares."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One repair and what fitted it."""

    name: str
    """Name in the table of candidates."""
    repair: Repair
    """The repair."""
    fitter: Fitter
    """Its fitter, for the controls."""


def candidates(
    fitter: Fitter, preset: str, sites: Mapping[Modality, Sequence[Site]]
) -> list[Candidate]:
    """The candidates at the recommended `sites` of each modality, best first.

    Where none is recommended, those of the configuration. Only a gated preset has more than one.
    """
    config = fitter.config
    if config.gate is None:
        return [Candidate(preset, fitter.repair(dict(sites) or None, preset), fitter)]
    found: dict[Modality, Sequence[Site]] = {m: part for m, part in sites.items() if part}
    if not found:
        by_depth = chosen_sites(fitter.vlm, config)
        found = {modality: by_depth[modality] for modality in fitter.modalities()}
    tried = []
    for rank, places in enumerate(_combined(found)):
        for quantile in QUANTILES if rank == 0 else QUANTILES[:1]:
            other = fitter.with_config(
                replace(config, gate=replace(config.gate, quantile=quantile))
            )
            name = f"{', '.join(f'{m} {s}' for m, s in places.items())}; {quantile:g}"
            repair = other.repair({m: [site] for m, site in places.items()}, preset)
            tried.append(Candidate(name, repair, other))
    return tried


def _combined(sites: Mapping[Modality, Sequence[Site]]) -> list[dict[Modality, Site]]:
    """One site of each modality: the best of both, then each other one with the best."""
    best: dict[Modality, Site] = {modality: part[0] for modality, part in sites.items()}
    return [best, *({**best, m: site} for m, part in sites.items() for site in part[1:])]


def choose(before: Mapping[str, float], rates: Mapping[str, Mapping[str, float]]) -> str:
    """The name of the best candidate by `RULE`; ties go to the earlier, simpler one."""

    def excess(after: Mapping[str, float]) -> float:
        lost = {
            "utility": before["utility"] - after["utility"],
            "answered": before["answered"] - after["answered"],
            "degenerate": after["degenerate"] - before["degenerate"],
        }
        return sum(max(0.0, lost[name] - margin - 1e-9) for name, margin in MARGINS.items())

    return min(rates, key=lambda name: (excess(rates[name]), rates[name]["asr"]))
