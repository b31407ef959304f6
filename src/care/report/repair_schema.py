"""The `repair` part of a report: what was changed, and how it was chosen among the candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from care.defenses.monitors.results import MonitorsTold, Pooling, Reads
from care.typed import WHEN_SET, Count, Misfit, Share, same_count


@dataclass(frozen=True)
class GatePart:
    """When a channel acts: one discriminant for each family of attacks."""

    families: tuple[str, ...]
    """Names of the attack families, one discriminant each; at least one."""
    low: tuple[float, ...]
    """Per family, the score at which the gate begins to open (0: mean of the background, 1: mean of
    the family); below `high`."""
    high: tuple[float, ...]
    """Per family, the score from which the gate is fully open."""
    open: dict[str, Share]
    """Family → share of its attacks for which the gate opens at all, scored by discriminants that
    haven't seen the goal; exactly the names in `families`."""
    open_benign: Share
    """The same share of benign requests."""
    quantile: Share
    """Quantile of benign scores that `low` is set to, for each family."""

    def check(self) -> None:
        """Every family once, with a threshold of either kind and a share of its attacks."""
        families = self.families
        if not families or len(set(families)) != len(families):
            raise Misfit("families", "must name every family once, and at least one")
        for key in ("low", "high"):
            same_count(len(getattr(self, key)), len(families), key, "families")
        for k, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if low >= high:
                raise Misfit(f"low[{k}]", f"is {low:g}, not below high[{k}], {high:g}")
        if odd := sorted(set(families) ^ set(self.open)):
            raise Misfit(
                "open",
                f"and families differ in {odd[0]!r}; give every family the share of its attacks",
            )


@dataclass(frozen=True)
class ChannelPart:
    """One fitted subspace of the repair, at one site."""

    site: str
    """Where, written `16.ffn_out`."""
    modality: str
    """Of a gated channel the attacks that it acts on: `image` (those that come with pictures) or
    `text` (those without); of an ungated one the tokens it edits: `visual` or `text`."""
    scopes: tuple[str, ...]
    """Tokens that it edits."""
    rank: Count
    """K."""
    strength: float
    """How far it is closed."""
    eigenvalues: tuple[float, ...]
    """Largest first."""
    null_quantile: float | None
    """Of the permutation null, or null."""
    shrinkage: float
    """Of the covariance of benign activations."""
    condition: float
    """Condition number of the shrunk matrix that attacks are compared with."""
    n_malicious: Count
    """Rows of attacks in that comparison."""
    n_benign: Count
    """Rows on the other side of it."""
    gate: GatePart | None
    """When it acts; null for a channel that always does."""


@dataclass(frozen=True)
class MonitorPart:
    """What watches requests or answers, reading them again as text."""

    reads: Reads
    """`request`, `answer` or `exchange`."""
    site: str | None
    """Where activations are taken; null for the refusal log-odds."""
    pooling: Pooling
    """How the scores of the tokens are made one: `mean`, `window` or `last`."""
    threshold: float
    """The score above which it alarms (0: mean of what is harmless, 1: mean of what is harmful)."""


@dataclass(frozen=True)
class CandidatePart:
    """One repair tried on the validation split."""

    name: str
    """What sets it apart."""
    asr: Share
    """Mean over attack suites; 1 where no attack could be judged."""
    utility: Share
    """Mean over utility suites."""
    answered: Share
    """Mean over over-refusal suites."""
    degenerate: Share
    """Share of degenerate answers."""
    chosen: bool
    """Whether it went on; true for at most one of `candidates`."""
    wins: Share | None = None
    """Of those screened: share of drawings of the validation goals, with replacement, in which it
    is the best by the rule."""


@dataclass(frozen=True)
class Selection:
    """How the repair was chosen among the candidates."""

    rule: str
    """In words."""
    screened: tuple[CandidatePart, ...]
    """All candidates by the first tokens of their answers, `chosen` for those that became
    `candidates`; empty if none were left out."""
    candidates: tuple[CandidatePart, ...]
    """Those judged by whole answers on the validation split."""
    monitors: Annotated[MonitorsTold | None, WHEN_SET] = None
    """What monitors were chosen between; absent where there are none."""

    def check(self) -> None:
        """At most one is chosen."""
        chosen = sum(candidate.chosen for candidate in self.candidates)
        if chosen > 1:
            raise Misfit("candidates", f"marks {chosen} candidates as chosen; mark one")


@dataclass(frozen=True)
class RepairPart:
    """What was changed."""

    preset: str
    """`paper`, `official`, `corrected`, …"""
    channels: tuple[ChannelPart, ...]
    """The fitted subspaces."""
    selection: Selection
    """How it was chosen."""
    monitors: Annotated[tuple[MonitorPart, ...], WHEN_SET] = ()
    """What watches requests and answers; absent where channels act on every request."""
