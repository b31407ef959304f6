"""CMRM: activations of requests with a picture are moved back to where words alone would be.

A picture shifts activations from what the same words give; at the last token, at all layers,

    v = mean over anchors of [ h(text) − h(picture, text) ],      h' = h + a v.

Liu et al. 2024, arXiv 2410.09047: anchors are either a data set (one v for all requests, the
default) or the request itself (`anchor="request"`: v of its own, by two passes more, with the
picture and without it); a is chosen for each model, 1 by default here.

What had to be chosen: anchors of the data set are malicious requests with a picture and the same
without; requests without a picture are the bare model's. With a data set v is added from the last
token of the prompt on; with the request itself at that token alone, since v is of that token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.activations import at_decision
from care.defenses.asking import Gated, answers_by_batch
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.steering import Steering, at_least, decisions_moved, layers_between
from care.defenses.stored import fitted_on
from care.models.edit_stats import EditStats
from care.models.responses import Answer
from care.models.sites import Site
from care.models.vlm import VLM


@register("cmrm")
@dataclass(frozen=True, eq=False, kw_only=True)
class Cmrm(Gated, Steering):
    """What pictures do to activations on the whole is taken back, for requests with a picture."""

    paper: ClassVar[str] = "Liu et al. 2024, 2410.09047"
    cost: ClassVar[Cost] = Cost(needs=("malicious requests", "pictures of attacks"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((0.01, 1.0), (0.3, 0.7), (0.5, 0.5)),
        "strength": (0.05, 0.1, 0.25, 0.5, 1.0),
        "anchor": ("data", "request"),
    }
    unfitted: ClassVar[tuple[str, ...]] = ("strength", "anchor")

    direction: np.ndarray
    """v of each layer (L, D), of the anchors of the data set."""
    anchor: Literal["data", "request"] = "data"
    """Whose shift is taken back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor == "request":
            object.__setattr__(self, "cost", replace(type(self).cost, forwards=2.0))

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + a v."""
        return h + self.strength * self.number("direction", h)[place]

    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Requests with a picture (N,)."""
        return np.array([bool(example.images) and self.strength != 0 for example in examples])

    def guarded(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers to requests with a picture."""
        if self.anchor == "data":
            return super().guarded(vlm, examples, **how)
        self.check(vlm)
        return answers_by_batch(vlm, examples, partial(self.shifted, vlm), **how)

    def shifted(self, vlm: VLM, examples: list[Example]) -> AbstractContextManager[EditStats]:
        """A context in which these requests, asked together, have their own shifts taken back."""
        shifts = differences(vlm, examples, self.sites, len(examples))

        def back(site: Site, h: Tensor) -> Tensor:
            return h + self.strength * torch.from_numpy(shifts[site]).to(h)

        return decisions_moved(vlm, {s: partial(back, s) for s in self.sites}, len(examples))

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        depths: tuple[float, float] = (0.01, 1.0),
        strength: float = 1.0,
        anchor: Literal["data", "request"] = "data",
        batch_size: int = 16,
    ) -> Self:
        """Fit on malicious requests with a picture."""
        anchors = [example for example in attacks if example.images]
        at_least(1, anchors, "malicious requests with a picture")
        layers = layers_between(vlm, depths)
        shifts = differences(vlm, anchors, [Site(each, "layer_out") for each in layers], batch_size)
        return cls(
            layers=layers,
            strength=strength,
            direction=np.array([rows.mean(axis=0, dtype=np.float64) for rows in shifts.values()]),
            anchor=anchor,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def differences(
    vlm: VLM, examples: Sequence[Example], sites: Sequence[Site], batch_size: int
) -> dict[Site, np.ndarray]:
    """h(text) − h(picture, text) (N, D) at each site."""
    pictured = at_decision(vlm, [replace(e, opening="") for e in examples], sites, batch_size)
    worded = at_decision(vlm, [e.text_alone() for e in examples], sites, batch_size)
    return {site: worded[site] - pictured[site] for site in sites}
