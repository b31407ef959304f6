"""Neuron suppression: the fewest neurons whose suppression makes attacks refused, as a defense.

While it is applied, neuron i of layer l has, at the tokens in scope and with strength s,

    a_i ← a_i + s (ā_i − a_i)

where ā_i is its mean per position class (`mean`) or 0 (`zero`). Which neurons these are is chosen
in `care.diagnosis.neurons.suppression_search`. Ablating a few neurons of an FFN can break a
language model, so whole answers have to be judged too (`care.evaluate`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from care.defenses.base import Defense, Touches, register, touched
from care.errors import ArtefactError, SiteError, UsageError
from care.models.edit_stats import EditStats
from care.models.hooks import edited
from care.models.passes import Pass
from care.models.sites import (
    N_CLASSES,
    Neuron,
    Scope,
    Site,
    neuron_site,
    position_classes,
    reaches_answers,
    scope_mask,
)
from care.models.vlm import VLM
from care.runs.files import config_digest, to_json, write_whole
from care.runs.reading import read_json

Suppression = Literal["mean", "zero"]

FORMAT = "care-neurons-2"
"""Marks a file as neuron suppression; files of version 1 had no digest."""


@register("neurons")
@dataclass(frozen=True)
class NeuronSuppression(Defense):
    """Neurons that are suppressed."""

    stored_as: ClassVar[str] = "neurons.json"

    neurons: tuple[Neuron, ...]
    """(layer, neuron), or (layer, expert, neuron) of an FFN of experts, best first."""
    means: tuple[tuple[float, ...], ...]
    """What each neuron is drawn towards, one value per position class of `care.diagnosis.ablation`;
    zeros for zero ablation."""
    shape: tuple[int, int]
    """(L, F) of the model it is for: F neurons in the layer with most."""
    scopes: tuple[Scope, ...] = ("all",)
    """Tokens at which they are suppressed."""
    strength: float = 1.0
    """s in [0, 1]; 1 replaces the value."""
    name: str = "neurons"
    """Name in tables."""
    manifest: dict[str, Any] = field(default_factory=dict, compare=False)
    """What it was made from."""

    def __post_init__(self) -> None:
        if not self.neurons or len(set(self.neurons)) < len(self.neurons):
            raise UsageError(
                "Neuron suppression needs one or more different neurons, got "
                f"{len(self.neurons)} of which {len(set(self.neurons))} differ."
            )
        if len(self.means) != len(self.neurons) or {len(m) for m in self.means} != {N_CLASSES}:
            raise UsageError(
                f"{len(self.neurons)} neurons need as many rows of {N_CLASSES} means, one for each "
                f"position class; got {len(self.means)} rows."
            )
        if not all(math.isfinite(value) for row in self.means for value in row):
            raise UsageError("The means of neuron suppression must be finite numbers.")
        if not 0.0 <= self.strength <= 1.0:
            raise UsageError(f"strength must lie between 0 and 1, got {self.strength}.")
        scope_mask(torch.zeros(1, 1, dtype=torch.long), self.scopes)  # a wrong scope fails here

    @classmethod
    def of(
        cls,
        vlm: VLM,
        neurons: Sequence[Neuron],
        how: Suppression = "mean",
        means: Mapping[Site, Tensor] | None = None,
        **options: Any,
    ) -> NeuronSuppression:
        """Suppression of these neurons; `means` (5, F) per site are needed unless `how` is "zero".

        A class that the means haven't seen (answer tokens, if they are of prompts) has the mean of
        all tokens there; see `care.diagnosis.neurons.interventions.neuron_means`. Options are the
        other fields.
        """
        if how not in get_args(Suppression):
            raise UsageError(f"how is {how!r}; use mean or zero.")
        for neuron in neurons:
            vlm.anatomy.neurons.check(neuron)
        absent = [site for each in neurons if (site := neuron_site(each)) not in (means or {})]
        if absent and how == "mean":
            raise UsageError(f"Mean suppression needs means[{absent[0]}]; none was given.")
        values = [
            (0.0,) * N_CLASSES
            if means is None or how == "zero"
            else tuple(means[neuron_site(neuron)][:, neuron[-1]].tolist())
            for neuron in neurons
        ]
        shape = vlm.anatomy.neurons.shape
        made = cls(tuple(tuple(each) for each in neurons), tuple(values), shape, **options)
        made.check(vlm)
        return made

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are edited, in order."""
        return tuple(sorted({neuron_site(neuron) for neuron in self.neurons}))

    @property
    def touches(self) -> Touches:
        """The decision alone where nothing before the last position of a prompt is edited."""
        return touched(self.scopes)

    def check(self, vlm: VLM) -> None:
        """ArtefactError unless the model has L layers of F neurons, and these neurons."""
        shape = vlm.anatomy.neurons.shape
        if tuple(self.shape) != shape:
            raise ArtefactError(
                f"the neurons are of a model of {self.shape[0]} layers with {self.shape[1]} each, "
                f"but {vlm.name} has {shape[0]} with {shape[1]}: choose them for this model"
            )
        for neuron in self.neurons:
            try:
                vlm.anatomy.neurons.check(neuron)
            except SiteError as error:
                raise ArtefactError(f"one of the neurons isn't of {vlm.name}: {error}") from error

    def applied(self, vlm: VLM) -> AbstractContextManager[EditStats]:
        """Suppress the neurons while the context is open; yields counts of what was edited to
        whoever holds them (`care.models.hooks.edit`)."""
        self.check(vlm)
        return edited(vlm, {site: self._edit(site) for site in self.sites})

    def only(self, neurons: Sequence[Neuron], name: str | None = None) -> NeuronSuppression:
        """Some of the neurons; UsageError for one that it doesn't have."""
        place = {neuron: k for k, neuron in enumerate(self.neurons)}
        unknown = [neuron for neuron in neurons if tuple(neuron) not in place]
        if unknown:
            raise UsageError(
                f"Neuron {unknown[0]} isn't suppressed here; choose among those that are."
            )
        means = tuple(self.means[place[neuron]] for neuron in neurons)
        return replace(self, neurons=tuple(neurons), means=means, name=name or self.name)

    def with_strength(self, strength: float) -> NeuronSuppression:
        """The same neurons at another strength."""
        return replace(self, strength=strength)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with their digest, from which `from_json` makes the same."""
        tree = {"format": FORMAT, **json.loads(to_json(asdict(self)))}
        return tree | {"sha256": config_digest(tree)}

    def digest(self) -> str:
        """SHA-256 over everything it does and was made from, as its file states it."""
        return self.to_json()["sha256"]

    @classmethod
    def from_json(cls, tree: Any) -> NeuronSuppression:
        """Inverse of `to_json`; ArtefactError for anything else."""
        if not isinstance(tree, Mapping) or tree.get("format") != FORMAT:
            raise ArtefactError(
                f"this is not neuron suppression of format {FORMAT}, make it anew: {tree!r:.60}"
            )
        others = {key: value for key, value in tree.items() if key != "sha256"}
        try:
            if tree.get("sha256") != config_digest(others):
                raise UsageError("it doesn't have the digest that it states")
            return cls(
                neurons=tuple(_neuron(each) for each in tree["neurons"]),
                means=tuple(tuple(float(value) for value in row) for row in tree["means"]),
                shape=(int(tree["shape"][0]), int(tree["shape"][1])),
                scopes=tuple(tree["scopes"]),
                strength=float(tree["strength"]),
                name=str(tree["name"]),
                manifest=dict(tree["manifest"]),
            )
        except (UsageError, TypeError, ValueError, LookupError, OverflowError) as error:
            raise ArtefactError(
                f"the neuron suppression is damaged ({error}): make it anew"
            ) from error

    def save(self, folder: str | Path) -> Path:
        """Write the one JSON file of the folder, whole or not at all."""
        write_whole(Path(folder) / self.stored_as, self.to_text())
        return Path(folder)

    def to_text(self) -> str:
        """What the file holds."""
        return to_json(self.to_json(), indent=1)

    @classmethod
    def load(cls, folder: str | Path, vlm: VLM | None = None) -> NeuronSuppression:
        """Read what `save` wrote, or such a file by itself, checked, also against `vlm`.

        ArtefactError if it isn't there or is something else.
        """
        path = Path(folder) / cls.stored_as if Path(folder).is_dir() else Path(folder)
        otherwise = "pass the folder that a defense was saved in"
        tree = read_json(path, error=ArtefactError, otherwise=otherwise)
        made = cls.from_json(tree)
        if vlm is not None:
            made.check(vlm)
        return made

    def _edit(self, site: Site) -> Callable[[Tensor, Pass], Tensor]:
        own = [k for k, neuron in enumerate(self.neurons) if neuron_site(neuron) == site]
        columns = torch.tensor([self.neurons[k][-1] for k in own])
        means = torch.tensor([self.means[k] for k in own]).T  # (5, chosen)
        return partial(self._suppress, columns, means)

    def _suppress(self, columns: Tensor, means: Tensor, h: Tensor, context: Pass) -> Tensor:
        """h (B, T, F) -> h with columns moved towards the means (5, chosen) of their classes."""
        if context.answering and not reaches_answers(self.scopes):
            return h
        roles = context.roles
        columns, means = columns.to(h.device), means.to(h.device)
        old = h[..., columns]
        moved = torch.lerp(old.float(), means[position_classes(roles)], self.strength).to(h)
        inside = scope_mask(roles, self.scopes)[..., None]
        return h.index_copy(-1, columns, torch.where(inside, moved, old))


def _neuron(stored: Any) -> Neuron:
    """(layer, neuron) or (layer, expert, neuron) as a file holds it."""
    if len(stored) not in (2, 3):
        raise ValueError(f"{stored!r} is no neuron")
    return tuple(int(number) for number in stored)
