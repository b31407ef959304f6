"""What a scan of sites is asked for (`care.diagnosis.site_scan`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from care.diagnosis.ablation import Ablation
from care.diagnosis.activation_means import Pooling
from care.diagnosis.site_results import Component
from care.errors import UsageError
from care.runs.settings import require
from care.statistics.sampling import SamplingSpec

Reference = Literal["all", "benign"]

_AT_LEAST = {
    "max_attacks": 2,
    "max_benign": 2,
    "generate_examples": 2,
    "top_sites": 0,
    "max_new_tokens": 1,
    "batch_size": 1,
    "max_cache_bytes": 0,
}

_REFUSED: dict[str, tuple[Ablation, ...]] = {
    "intervention": ("paired",),
    "layer_intervention": ("paired", "previous-layer"),
}
"""Ablations that a scan of unpaired examples, or of whole layers, can't make."""


@dataclass(frozen=True)
class SiteScanConfig:
    """Settings of `scan_sites`."""

    intervention: Ablation = "mean"
    """How an FFN or attention output is removed, the same for both; `skip` equals `zero` there.

    `constant` is fitted on benign examples beyond `max_benign`, which must be at least 2.
    `previous-layer` starts at the first layer that has an earlier one. `paired` needs pairs
    (`care.diagnosis.causal_mediation`)."""

    reference: Reference = "all"
    """Prompts whose mean a `mean` ablation puts at a site, the same for attacks and benign ones:
    `all` that are scored, or the `benign` ones alone. Attacks lie further from the latter, and
    benign prompts not at all."""

    layer_intervention: Ablation = "skip"
    """How a whole layer is removed; the paper bypasses it."""

    components: tuple[Component, ...] = ("ffn", "mhsa", "layer")
    """What is scanned."""

    windows: tuple[int, ...] = (1, 3)
    """Numbers of consecutive layers removed at once; odd, and 1 among them. Sites are recommended
    from single layers."""

    max_attacks: int | None = 16
    """Attack examples used, evenly spaced over those given; None for all."""

    max_benign: int | None = 8
    """The same for benign examples."""

    top_sites: int = 4
    """FFN and attention sites looked at more closely."""

    generate_examples: int = 12
    """Attack examples answered without each top site."""

    max_new_tokens: int = 24
    """Length of those answers."""

    min_selectivity: float = 0.1
    """Selectivity, in nats, that the lower limit of a recommended site's must exceed: with enough
    examples even negligible effects differ from 0."""

    max_degenerate_rise: float = 0.1
    """A site is turned down if the share of degenerate answers rises by more than this."""

    pooling: Pooling = "text"
    """Rows for separability: the mean over `text` tokens or the `last` token."""

    batch_size: int = 16
    """Examples per forward pass."""

    max_cache_bytes: int = 4 * 2**30
    """Most that is remembered of a batch to run it again from any layer; beyond it layers are
    computed again (see `care.models.replay`)."""

    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    """Confidence level, resamples and seed of all intervals."""

    def __post_init__(self) -> None:
        for name, refused in _REFUSED.items():
            known = [how for how in get_args(Ablation) if how not in refused]
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}."
                )
        unknown = [part for part in self.components if part not in get_args(Component)]
        if unknown or not self.components:
            raise UsageError(
                f"components is {self.components!r}; use some of {', '.join(get_args(Component))}."
            )
        if 1 not in self.windows or any(size < 1 or size % 2 == 0 for size in self.windows):
            raise UsageError(
                f"windows is {self.windows!r}; use odd numbers of layers, 1 among them."
            )
        if self.reference not in get_args(Reference):
            raise UsageError(f"reference is {self.reference!r}; use all or benign.")
        if self.pooling not in get_args(Pooling):
            raise UsageError(f"pooling is {self.pooling!r}; use text or last.")
        require(self, _AT_LEAST)
