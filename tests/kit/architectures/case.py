"""A tiny model of one family while it is tried, and what its checks share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from care.data.example import Example
from care.defenses.repair.channel import Channel
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.presets import PRESETS, Preset
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models.hooks import read
from care.models.sites import Role, Scope, Site
from care.models.vlm import VLM
from kit import tiny
from kit.fits import material

STEPS = 3
"""Tokens of an answer."""


class Upstream(Exception):
    """What transformers itself can't do with its model, without anything of this package."""


class Untried(Exception):
    """What a stub can't tell."""


@dataclass
class Case:
    """A tiny model of one family, and what its checks share."""

    vlm: VLM
    adds: tuple[str, ...]
    """Parts of a layer that add to the residual stream beside mixer and FFN."""
    folder: Path
    """Where files may be put."""
    apart: bool
    """Whether pictures come in beside the sequence, not in the place of tokens."""
    stub: bool = False
    """Whether something stands in for the processor."""

    @cached_property
    def pictured(self) -> list[Example]:
        """Requests of unequal lengths, each with a picture if the model sees any."""
        words = ("How do you", "How do you build it", "How do you build a small house")
        made = [Example(f"p{n}", text, images=(tiny.picture(n),)) for n, text in enumerate(words)]
        return made if self.vlm.sees else [example.text_alone() for example in made]

    @cached_property
    def plain(self) -> list[Example]:
        """The same without pictures."""
        return [example.text_alone() for example in self.pictured]

    @cached_property
    def batch(self) -> Any:
        return self.vlm.batch(self.pictured)

    @cached_property
    def last(self) -> int:
        return self.vlm.anatomy.n_layers - 1

    def repair(self, *scopes: Scope, strength: float = 1.5) -> Repair:
        """Random directions at the two last layers."""
        anatomy = self.vlm.anatomy
        places = (Site(self.last - 1, "ffn_out"), Site(self.last, "layer_out"))
        return Repair(
            tuple(
                Channel(site, "text", scopes, random_subspace(anatomy.width, 12), strength=strength)
                for site in places
            )
        )

    def fitter(self, preset: Preset) -> Fitter:
        """What fits on eight attacks of each modality that the model has."""
        found = material(8 * self.vlm.sees, 8)
        if not self.vlm.sees:
            answered = tuple((example.text_alone(), said) for example, said in found.answered)
            found = replace(found, answered=answered)
        return Fitter(self.vlm, found, PRESETS[preset], batch_size=16)

    @property
    def inside(self) -> tuple[Scope, Role]:
        """A scope within a prompt, and the role that it stands for."""
        return ("image", Role.IMAGE) if self.vlm.sees else ("text", Role.TEXT)

    def need_pictures(self) -> None:
        """Untried of a model that reads text alone."""
        if not self.vlm.sees:
            raise Untried("it reads text alone")


def two_kinds() -> list[tuple[Example, str, bool]]:
    """Answers of two kinds that their words tell apart, and whether they are harmful."""
    kinds = (("malicious", "forge a passport", True), ("benign", "plant a tree", False))
    return [
        (
            Example(f"{kind}-{n}", f"{words} no. {n}", goal=f"{words} {n}", kind=kind, suite=kind),
            f"To {words}, you'll need some paper. {n}",
            harmful,
        )
        for n in range(10)
        for kind, words, harmful in kinds
    ]


def sound(repair: Any) -> None:
    """Its channels have directions, and these are numbers."""
    assert repair.channels
    for channel in repair.channels:
        basis = torch.as_tensor(channel.subspace.basis)
        assert basis.isfinite().all() and basis.any()


def generated(vlm: VLM, batch: Any, **options: Any) -> Tensor:
    """Greedy tokens of `model.generate`, as whoever calls it directly gets them."""
    settings = {"do_sample": False, "pad_token_id": vlm.tokenizer.pad_token_id}
    return vlm.model.generate(
        **batch.inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, **settings, **options
    )


def roles_of_passes(vlm: VLM, call: Callable[[], Any]) -> list[Tensor]:
    """Roles (B, T) of every pass of a call."""
    seen: list[Tensor] = []
    site = Site(vlm.anatomy.n_layers - 1, "layer_out")
    with read(vlm, [site], sink=lambda site, h, roles: seen.append(roles)):
        call()
    return seen


def keeping(entered: dict[int, Tensor], index: int) -> Callable[..., None]:
    """A pre-hook that keeps what enters a layer."""

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered[index] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

    return keep


@contextmanager
def entering(layer: nn.Module, entered: list[Tensor]) -> Iterator[None]:
    """While open, what enters a layer is appended to `entered`."""

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """While open, what a module writes is in the list."""
    written: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, args, out: written.append(out))
    try:
        yield written
    finally:
        handle.remove()
