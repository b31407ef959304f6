"""What sets attacks apart from their counterparts, with sites or neurons removed.

The behaviour that a ranking has to explain (`care.diagnosis.faithfulness`) is a difference of two
runs,

    d_n(R) = m(x'_n | R removed) − m(x_n | R removed)

with m the refusal log-odds and x_n the benign counterpart of attack x'_n; without pairs the mean
over benign prompts stands for m(x_n). Sites and neurons are removed by mean ablation, with means
per position class over all these prompts, x' and x together: so both sides get the same value, and
what a removed unit did to tell them apart is gone. Means of each side's own would keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.defenses.neuron_suppression import NeuronSuppression
from care.diagnosis.ablation import ablate, first_needed
from care.diagnosis.activation_means import collect, goals_of
from care.diagnosis.measures import first_token, refusal_log_odds
from care.diagnosis.neurons.interventions import neuron_means
from care.diagnosis.scan import Runs
from care.errors import NotFiniteError
from care.models.finite import not_finite
from care.models.sites import Neuron, Site
from care.models.vlm import VLM

Removed = Callable[[Sequence], np.ndarray]
"""Units that are removed -> d (N,)."""


@dataclass(frozen=True)
class Compared:
    """N attacks and what they are compared with."""

    attacks: tuple[Example, ...]
    """x'."""
    benign: tuple[Example, ...]
    """x: one for each attack if `paired`, else any number."""
    paired: bool
    """Whether they belong together one by one."""
    kind: str = ""
    """Kind of the pairs, in words."""

    @classmethod
    def of_pairs(cls, pairs: Sequence[Pair]) -> Compared:
        """Both sides of each pair, all of one kind."""
        attacks, benign = (tuple(getattr(p, side) for p in pairs) for side in ("attack", "benign"))
        return cls(attacks, benign, True, pairs[0].kind if pairs else "")

    @property
    def goals(self) -> list[str]:
        """What the bootstrap resamples (N,)."""
        return goals_of(self.attacks)

    @property
    def metric(self) -> str:
        """d in words."""
        other = "its benign counterpart" if self.paired else "the mean of benign prompts"
        unit = f"nats; {self.kind}" if self.kind else "nats"
        return f"refusal log-odds of an attack less that of {other} ({unit})"

    @property
    def examples(self) -> list[Example]:
        """Everything that is run."""
        return [*self.attacks, *self.benign]

    def difference(self, values: np.ndarray) -> np.ndarray:
        """d (N,) from m of `examples`."""
        own, other = np.split(values, [len(self.attacks)])
        return own - (other if self.paired else other.mean())

    def without_sites(
        self, vlm: VLM, sites: Sequence[Site], batch_size: int = 16, kept: KeptRuns | None = None
    ) -> Removed:
        """d with some of `sites` removed; `kept` are the runs of `examples`, if they are there."""
        means = collect(vlm, self.examples, sites, batch_size=batch_size).means
        kept = kept or KeptRuns(vlm, self.examples, batch_size)

        def metric_with(removed: Sequence[Site]) -> np.ndarray:
            if not removed:
                return self.difference(kept.clean)
            with ablate(vlm, sorted(removed), "mean", means):
                return self.difference(kept.values(first_needed(removed, "mean")))

        return metric_with

    def without_neurons(
        self, vlm: VLM, batch_size: int = 16, kept: KeptRuns | None = None
    ) -> Removed:
        """d with some neurons removed at every token; `kept` as for `without_sites`."""
        means = neuron_means(vlm, self.examples, batch_size)
        kept = kept or KeptRuns(vlm, self.examples, batch_size)

        def metric_with(removed: Sequence[Neuron]) -> np.ndarray:
            if not removed:
                return self.difference(kept.clean)
            with NeuronSuppression.of(vlm, list(removed), "mean", means).applied(vlm):
                return self.difference(kept.values(min(neuron[0] for neuron in removed)))

        return metric_with


class KeptRuns:
    """Batches that have been run once and are run again from the first layer that changes.

    Attributes: `clean`, m of the prompts as they are (N,). What is remembered of the batches shares
    `max_bytes`; beyond it layers are computed again (`care.models.replay`).
    """

    def __init__(
        self, vlm: VLM, examples: Sequence[Example], batch_size: int, max_bytes: int = 4 * 2**30
    ) -> None:
        self._vlm = vlm
        measure = first_token(refusal_log_odds(vlm))
        share = max_bytes // -(-len(examples) // batch_size)

        def begun(chunk: list[int]) -> list[tuple[Runs, int]]:
            batch = [examples[index] for index in chunk]
            runs = Runs(vlm, batch, measure, max_bytes=share)
            return [(runs, place) for place in range(len(chunk))]

        self._places = vlm.in_batches(list(examples), batch_size, begun)
        self.clean = self._each(lambda runs: runs.clean)

    def values(self, start: int) -> np.ndarray:
        """m (N,) under the edits that are in place now, which change nothing before `start`."""
        return self._each(lambda runs: runs.values(start))

    def _each(self, read: Callable[[Runs], Sequence[float]]) -> np.ndarray:
        found = {runs: read(runs) for runs in dict.fromkeys(runs for runs, _ in self._places)}
        values = np.array([found[runs][place] for runs, place in self._places])
        if not np.isfinite(values).all():
            raise NotFiniteError(not_finite(self._vlm.name, self._vlm.dtype))
        return values
