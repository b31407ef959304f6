"""One place for every FFN neuron of a model: layer by layer, and in a layer expert by expert.

A table (L, F) has a row for each layer, and as many columns as the layer with most neurons needs;
the columns of a layer are those of its experts one after the other. Layers of one model may differ:
the first ones of a model of experts often have a plain FFN. Places that are no neuron's are told by
`real`. Not here: how neurons are reached (`care.models.experts`, `care.models.hooks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from care.errors import SiteError
from care.models.sites import Neuron, Site, neuron_site


@dataclass(frozen=True)
class NeuronTable:
    """Places of neurons."""

    widths: tuple[tuple[int, ...], ...]
    """Of each layer, how many neurons each of its experts has; of a plain FFN, its own alone."""
    experts: tuple[bool, ...]
    """Whether the FFN of each layer is one of experts."""

    @property
    def width(self) -> int:
        """Columns F of a table: neurons of the layer with most."""
        return max(sum(own) for own in self.widths)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, F)."""
        return len(self.widths), self.width

    @property
    def total(self) -> int:
        """How many neurons there are."""
        return sum(sum(own) for own in self.widths)

    @cached_property
    def real(self) -> np.ndarray:
        """Which places are a neuron's (L, F)."""
        return np.arange(self.width) < np.array([sum(own) for own in self.widths])[:, None]

    @cached_property
    def columns(self) -> dict[Site, slice]:
        """Every site of neurons, first layer and expert first, with the columns that are its."""
        found = {}
        for layer, (own, experts) in enumerate(zip(self.widths, self.experts, strict=True)):
            for part, end in enumerate(accumulate(own)):
                site = Site(layer, "ffn_neurons", part if experts else None)
                found[site] = slice(end - own[part], end)
        return found

    def place(self, neuron: Neuron) -> tuple[int, int]:
        """Row and column of a neuron; SiteError for one that the model doesn't have."""
        self.check(neuron)
        site = neuron_site(neuron)
        return site.layer, self.columns[site].start + neuron[-1]

    def at(self, layer: int, column: int) -> Neuron:
        """The neuron at a place."""
        if not self.experts[layer]:
            return layer, column
        ends = list(accumulate(self.widths[layer]))
        expert = next(k for k, end in enumerate(ends) if column < end)
        return layer, expert, column - ends[expert] + self.widths[layer][expert]

    def neurons(self, flat: Sequence[int] | np.ndarray) -> list[Neuron]:
        """The neurons at places that are counted row by row."""
        layers, columns = np.unravel_index(np.asarray(flat, dtype=np.int64), self.shape)
        return [self.at(*place) for place in zip(layers.tolist(), columns.tolist(), strict=True)]

    def flat(self, neurons: Sequence[Neuron]) -> np.ndarray:
        """Inverse of `neurons` (M,)."""
        places = [self.place(neuron) for neuron in neurons]
        return np.array([layer * self.width + column for layer, column in places], dtype=np.int64)

    def check(self, neuron: Neuron) -> None:
        """SiteError for a neuron that the model doesn't have."""
        layer, *which = neuron
        if not 0 <= layer < len(self.widths):
            raise SiteError(
                f"Layer {layer} does not exist: this model has {len(self.widths)} layers, "
                f"0 to {len(self.widths) - 1}."
            )
        own, experts = self.widths[layer], self.experts[layer]
        if len(which) != 1 + experts:
            form = "(layer, expert, neuron)" if experts else "(layer, neuron)"
            raise SiteError(
                f"{tuple(neuron)} is no neuron of layer {layer}, whose FFN is "
                f"{'one of experts' if experts else 'a plain one'}; write {form}."
            )
        if experts and not 0 <= which[0] < len(own):
            raise SiteError(
                f"Expert {which[0]} of layer {layer} does not exist: it has {len(own)}, 0 to "
                f"{len(own) - 1}."
            )
        most = own[which[0]] if experts else own[0]
        if not 0 <= which[-1] < most:
            whose = f"expert {which[0]} of layer {layer}" if experts else f"layer {layer}"
            raise SiteError(
                f"Neuron {which[-1]} of {whose} does not exist: it has {most}, 0 to {most - 1}."
            )
