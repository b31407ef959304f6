"""What a search for neurons says, and what suppressing them does.

Each class is one object of the `diagnosis.neurons` part of report.json, its fields the keys, and is
read back and checked by `care.typed`. The figures are made in `care.diagnosis.neurons.search` and
the modules below it, judged answers in `care.pipeline.neuron_comparison`; nothing is computed here,
and no torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from care.statistics.correlation import Correlation
from care.statistics.intervals import Interval
from care.typed import (
    TOLERANCE,
    WHEN_SET,
    Count,
    Misfit,
    NonNegative,
    Positive,
    Range,
    Share,
    inside,
)

Edit = Literal["none", "neurons", "subspace"]
"""Of what whole answers are compared: the bare model, neuron suppression, a subspace repair."""


@dataclass(frozen=True)
class Firing:
    """One prompt in which a neuron is strongly active, at its strongest position."""

    example: str
    """Id of the example."""
    token: str
    """The text token there, or the image placeholder."""
    activation: float
    """The neuron's value there, with its sign."""


@dataclass(frozen=True)
class FiringPatch:
    """One image patch on which a neuron fires."""

    example: str
    """Id of the example."""
    image: Count
    """Which of its images, from 0."""
    row: Count
    """Row in the grid of visual tokens, from the top."""
    column: Count
    """Column in the grid, from the left."""
    activation: float
    """The neuron's value there, with its sign."""


@dataclass(frozen=True)
class NeuronEffect:
    """One neuron that was replaced for real; effects in nats of refusal log-odds."""

    layer: Count
    """Layer."""
    neuron: Count
    """Index within the layer, or within the expert."""
    estimate: float
    """Effect according to the gradients."""
    exact: float
    """Mean effect of replacing it."""
    low: float
    """Lower limit, bootstrap over goals."""
    high: float
    """Upper limit."""
    p: Share
    """Two-sided p-value, sign flips over goals."""
    q: Share
    """Benjamini and Hochberg's q over all verified neurons and controls."""
    benign_exact: float | None
    """Mean effect of the control replacement on benign prompts; null where there is no control."""
    top_tokens: tuple[str, ...]
    """Tokens its output column makes likelier."""
    suppressed_tokens: tuple[str, ...]
    """Tokens it makes less likely."""
    examples: tuple[Firing, ...]
    """Prompts in which it is strongest."""
    patches: tuple[FiringPatch, ...]
    """Image patches on which it is strongest."""
    expert: Annotated[Count | None, WHEN_SET] = None
    """Where the FFN is one of experts, which: `neuron` counts within it. A shared one is last."""

    @property
    def key(self) -> tuple[int, ...]:
        """(layer, neuron) or (layer, expert, neuron)."""
        return (self.layer, *(() if self.expert is None else (self.expert,)), self.neuron)

    def check(self) -> None:
        """Misfit where the figures contradict each other."""
        inside(self, "exact")
        if self.q < self.p - TOLERANCE:
            raise Misfit("q", f"is {self.q:g}, below p, {self.p:g}")


@dataclass(frozen=True)
class FirstTokens:
    """First tokens of answers on validation with one edit."""

    not_refused: Share
    """Share of attacks whose answer doesn't begin with a refusal."""
    benign_refused: Share
    """Share of benign requests whose answer does."""


@dataclass(frozen=True)
class JudgedEdit:
    """Whole answers on validation with one edit."""

    edit: Edit
    """The edit."""
    asr: Annotated[Interval, Range(0.0, 1.0)]
    """Share of attacks answered harmfully."""
    utility: Share | None
    """Share of questions answered rightly, mean over suites; null without any."""
    answered: Share | None
    """Share of harmless requests answered; likewise."""
    degenerate: Share
    """Share of broken answers, mean over all suites."""


@dataclass(frozen=True)
class JudgedSuppression:
    """Neuron suppression beside the subspace repair, by whole answers to the same requests."""

    neurons: Positive
    """How many neurons are suppressed."""
    within_margin: bool
    """Whether they leave benign requests alone."""
    edits: tuple[JudgedEdit, ...]
    """The bare model, and it under both."""
    difference: Interval
    """Attack success under neuron suppression less that under the subspace repair."""

    def check(self) -> None:
        """Misfit unless each edit is there once and the difference is that of their success."""
        names = [item.edit for item in self.edits]
        if sorted(names) != ["neurons", "none", "subspace"]:
            found = ", ".join(names)
            raise Misfit("edits", f"has {found}; it must have none, neurons and subspace once")
        rates = {item.edit: item.asr.rate for item in self.edits}
        gap, stated = rates["neurons"] - rates["subspace"], self.difference.rate
        if abs(gap - stated) > TOLERANCE:
            words = f"is {stated:g}, but neurons less subspace is {gap:g}"
            raise Misfit("difference.rate", words)


@dataclass(frozen=True)
class SuppressionReport:
    """The fewest neurons whose suppression has attacks refused, beside the subspaces."""

    rule: str
    """How the set was chosen, in words."""
    neurons: tuple[tuple[Count, ...], ...]
    """(layer, index) of each, or (layer, expert, index); none where no set helps within the
    margin."""
    before: FirstTokens
    """The bare model."""
    after: FirstTokens
    """With these neurons suppressed."""
    subspace: FirstTokens | None
    """With a subspace repair, on the same requests; null where there was none."""
    judged: Annotated[JudgedSuppression | None, WHEN_SET] = None
    """Whole answers under both; null where none were judged."""

    def check(self) -> None:
        """Misfit where something isn't a neuron."""
        for place, neuron in enumerate(self.neurons):
            if len(neuron) not in (2, 3):
                raise Misfit(f"neurons[{place}]", f"has {len(neuron)} items; it must have 2 or 3")


@dataclass(frozen=True)
class NeuronReport:
    """The search over all FFN neurons, verified by exact patching."""

    pairs: str = field(default="", kw_only=True)
    """What the pairs differ in, in words; empty where neurons were compared with means."""
    method: str
    """How effects were estimated: `atp`, `ig` or `graddrop`."""
    n_neurons: Positive
    """All FFN neurons, of experts too, all of which were estimated."""
    steps: Positive
    """Backward passes per example."""
    forward_equivalents: NonNegative
    """Cost of the estimate per example, in forward passes; a backward pass counts as two."""
    scopes: tuple[str, ...]
    """Positions at which neurons were replaced."""
    spearman: Correlation
    """ρ of estimate and exact effect over verified neurons and controls; bootstrap over goals."""
    precision: dict[str, Share]
    """precision@k over the same, by k."""
    control_ratio: NonNegative | None
    """Mean |effect| of the verified neurons over that of the controls; null if theirs is 0."""
    found: tuple[NeuronEffect, ...]
    """The verified neurons, greatest absolute effect first."""
    controls: tuple[NeuronEffect, ...]
    """Random neurons of the same size."""
    repair: SuppressionReport | None = None
    """What suppressing the fewest of them does; null where that wasn't looked for."""

    def rows(self) -> Iterator[tuple[str, NeuronEffect]]:
        """Every verified neuron and control, with its path."""
        for name, part in (("found", self.found), ("controls", self.controls)):
            for i, item in enumerate(part):
                yield f"{name}[{i}]", item
