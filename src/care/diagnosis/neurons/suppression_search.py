"""Which neurons are suppressed: one rule, on validation requests alone.

The smallest set that has attacks refused while benign requests are still answered is looked for
along a ranking (`RULE`); a request counts as refused where the refusal log-odds at the first token
of its answer are positive. What whole answers become is for `care.evaluate` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from care.data.example import Example
from care.defenses.base import reads_undefended
from care.defenses.neuron_suppression import NeuronSuppression, Suppression
from care.diagnosis.neurons.attribution_patching import Estimates
from care.errors import UsageError
from care.models.sites import Neuron, Scope, Site
from care.models.vlm import VLM

RULE = (
    "of the first 1, 2, 4, … neurons of the ranking, the set that leaves least attacks without a "
    "refusal while the refused share of benign requests rises by at most the margin; then, by "
    "bisection, the shortest beginning of the ranking that does as well within the tolerance; then "
    "every neuron of it that isn't needed for that is left out, last ones first"
)
"""How the set is chosen, in words."""

BEYOND = "neurons beyond the margin"
"""Name of a set of neurons that is no repair, since it has too many benign requests refused."""

_PRUNED = 32


class Tried(NamedTuple):
    """What one set of neurons does on validation."""

    neurons: tuple[Neuron, ...]
    """The set."""
    not_refused: float
    """Share of attacks whose answer doesn't begin with a refusal."""
    benign_refused: float
    """Share of benign requests whose answer does."""


@dataclass(frozen=True)
class NeuronSearch:
    """Result of `search_neurons`."""

    chosen: NeuronSuppression | None
    """The smallest set found, as a defense; None if no set helps within the margin."""
    before: Tried
    """The bare model."""
    after: Tried
    """With that set suppressed; the same as `before` if there is none."""
    tried: tuple[Tried, ...]
    """Every set that was measured, in order."""
    rule: str = RULE
    """How the set was chosen."""
    closest: NeuronSuppression | None = None
    """Where none is chosen, the set that leaves least attacks without a refusal, whatever it
    does to benign requests; None if no set leaves fewer than the bare model."""


def rank_for_suppression(attacks: Estimates, benign: Estimates) -> list[Neuron]:
    """Neurons by what suppressing them does to attacks over what it does to benign requests.

    Both are estimates of mean ablation in nats (`against_means` and its control). The score is the
    effect on attacks less the size of that on benign requests; only positive ones are kept.
    """
    score = attacks.mean - np.abs(benign.mean)  # 0 where no neuron is
    order = np.argsort(-score, axis=None, kind="stable")[: int((score > 0).sum())]
    return attacks.table.neurons(order)


def search_neurons(
    vlm: VLM,
    ranking: Sequence[Neuron],
    attacks: Sequence[Example],
    benign: Sequence[Example],
    *,
    how: Suppression = "mean",
    means: Mapping[Site, Tensor] | None = None,
    scopes: Sequence[Scope] = ("all",),
    strength: float = 1.0,
    margin: float = 0.02,
    tolerance: float = 0.02,
    most: int = 256,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> NeuronSearch:
    """The smallest set of neurons by `RULE`, on validation `attacks` and `benign` requests.

    Parameters:
        ranking: neurons, best first (`rank_for_suppression`); at most `most` of them are used.
        margin: by how much the refused share of benign requests may rise.
        tolerance: how much of the best share of attacks a smaller set may give back.
        advance: gets the number of requests just finished.

    Raises UsageError for no neurons, attacks or benign requests, or a negative margin.
    """
    if not ranking or not attacks or not benign:
        raise UsageError(
            f"A search needs neurons, attacks and benign requests, got {len(ranking)}, "
            f"{len(attacks)} and {len(benign)}; pass some of each."
        )
    if margin < 0 or tolerance < 0 or most < 1:
        raise UsageError(
            "margin and tolerance must be 0 or more and most at least 1, got "
            f"{margin}, {tolerance} and {most}."
        )
    options: dict[str, Any] = {"scopes": tuple(scopes), "strength": strength}
    whole = NeuronSuppression.of(vlm, ranking[:most], how, means, **options)
    trial = _Trial(vlm, whole, list(attacks), list(benign), batch_size, advance)
    before = trial.measure(())
    allowed = before.benign_refused + margin + 1e-9
    prefixes = [trial.measure(whole.neurons[:size]) for size in _sizes(len(whole.neurons))]
    within = [item for item in prefixes if item.benign_refused <= allowed]
    best = min(within, key=lambda item: (item.not_refused, len(item.neurons)), default=before)
    if not best.not_refused < before.not_refused:
        closest = _closest(whole, before, prefixes)
        return NeuronSearch(None, before, before, tuple(trial.done.values()), closest=closest)
    # A set may be smaller than the best one, but it has to be better than none.
    most_open = min(best.not_refused + tolerance + 1e-9, before.not_refused - 1e-9)

    def does(item: Tried) -> bool:
        return item.benign_refused <= allowed and item.not_refused <= most_open

    chosen = _pruned(trial, _bisected(trial, whole.neurons, best, does), does)
    facts = {"rule": RULE, "how": how, "margin": margin, "tolerance": tolerance, "model": vlm.name}
    suppressed = replace(whole.only(chosen.neurons), manifest=facts)
    return NeuronSearch(suppressed, before, chosen, tuple(trial.done.values()))


def _closest(
    whole: NeuronSuppression, before: Tried, sets: Sequence[Tried]
) -> NeuronSuppression | None:
    """The set that does most about attacks, with a name that says that it costs too much."""
    best = min(sets, key=lambda item: (item.not_refused, item.benign_refused, len(item.neurons)))
    if best.not_refused >= before.not_refused:
        return None
    return replace(whole.only(best.neurons, BEYOND), manifest={"beyond the margin": True})


class _Trial:
    """Measures sets of neurons; each set once."""

    def __init__(
        self,
        vlm: VLM,
        whole: NeuronSuppression,
        attacks: list[Example],
        benign: list[Example],
        batch_size: int,
        advance: Callable[[int], None] | None,
    ) -> None:
        self.vlm, self.whole, self.advance = vlm, whole, advance
        self.examples, self.split, self.batch_size = [*attacks, *benign], len(attacks), batch_size
        self.done: dict[tuple[Neuron, ...], Tried] = {}
        prompts, together = self.examples, reads_undefended(whole)
        self.asked = vlm.prefill(prompts, batch_size=batch_size) if together else prompts

    def measure(self, neurons: Sequence[Neuron]) -> Tried:
        key = tuple(neurons)
        if key not in self.done:
            refused = self._refused(self.whole.only(key)) if key else self._refused(None)
            shares = 1 - refused[: self.split].mean(), refused[self.split :].mean()
            self.done[key] = Tried(key, *map(float, shares))
            if self.advance is not None:
                self.advance(len(self.examples))
        return self.done[key]

    def _refused(self, repair: NeuronSuppression | None) -> np.ndarray:
        with nullcontext() if repair is None else repair.applied(self.vlm):
            return self.vlm.refusal_log_odds(self.asked, batch_size=self.batch_size) > 0


def _sizes(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    return sorted({min(2**power, most) for power in range(most.bit_length() + 1)})


def _bisected(
    trial: _Trial, ranking: Sequence[Neuron], best: Tried, does: Callable[[Tried], bool]
) -> Tried:
    """A short beginning of the ranking that does, found as if longer ones always did too."""
    low, chosen = 0, best
    while len(chosen.neurons) - low > 1:
        middle = (low + len(chosen.neurons)) // 2
        item = trial.measure(ranking[:middle])
        if does(item):
            chosen = item
        else:
            low = middle
    return chosen


def _pruned(trial: _Trial, chosen: Tried, does: Callable[[Tried], bool]) -> Tried:
    """Without each of its last `_PRUNED` neurons in turn, as long as the rest does."""
    for neuron in chosen.neurons[::-1][:_PRUNED]:
        rest = tuple(other for other in chosen.neurons if other != neuron)
        if rest and does(item := trial.measure(rest)):
            chosen = item
    return chosen
