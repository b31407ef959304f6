"""Low-rank additions to weights: what defenses that train a model share.

    y' = y + a · s · B A x,   A (r, inputs), B (outputs, r), s = α / r

at every linear map of some layers, y = W x + b (LoRA, Hu et al. 2022, arXiv 2106.09685). They are
trained with PEFT, an extra that only a fit needs: what was trained is stored as numbers, and added
by hooks, so that the model's own weights are never touched. At strength a = 0 nothing is added.
Not here: what is descended (`care.defenses.rivals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from care.defenses.base import Touches
from care.defenses.likelihood import loss_value
from care.defenses.stored import StoredDefense
from care.errors import ArtefactError, FitError, MissingDependencyError, UsageError
from care.models.gradients import differentiable
from care.models.vlm import VLM

Item = TypeVar("Item")

MAX_NORM = 1.0
"""Longest gradient; a longer one is shortened to it."""

_ADAPTER = "care"  # what PEFT calls it while it is trained


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank(StoredDefense):
    """A defense that adds the product of two small matrices to some of a model's weights."""

    modules: tuple[str, ...]
    """The linear maps, as the model names them."""
    widths: tuple[tuple[int, int], ...]
    """Of each its inputs and outputs."""
    rank: int
    """r."""
    scale: float
    """s."""
    strength: float = 1.0
    """a; 0 is the bare model."""
    down: np.ndarray
    """All A row by row, one after another (Σ r · inputs,)."""
    up: np.ndarray
    """All B likewise (Σ outputs · r,)."""
    _kept: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [self.rank * sum(each[side] for each in self.widths) for side in (0, 1)]
        given = [self.down.shape, self.up.shape]
        if not self.modules or len(self.modules) != len(self.widths) or self.rank < 1:
            raise UsageError(
                f"The defense {self.name} needs linear maps, their widths and a rank of at least "
                f"1; got {len(self.modules)}, {len(self.widths)} and {self.rank}."
            )
        if given != [(size,) for size in sizes]:
            raise UsageError(
                f"The defense {self.name} needs {sizes[0]} and {sizes[1]} numbers for its widths "
                f"and rank, got {given[0]} and {given[1]}."
            )
        if not math.isfinite(self.strength * self.scale):
            raise UsageError(f"strength must be a finite number, got {self.strength!r:.40}.")

    @property
    def touches(self) -> Touches:
        """The model's weights."""
        return "weights"

    def with_strength(self, strength: float) -> Self:
        """The same at another strength."""
        return replace(self, strength=strength)

    def check(self, vlm: VLM) -> None:
        """ArtefactError unless the model has its linear maps, as wide as they were."""
        super().check(vlm)
        self._maps(vlm)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Add what was trained while the context is open."""
        self.check(vlm)
        with ExitStack() as stack:
            for place, module in enumerate(self._maps(vlm) if self.strength else ()):
                stack.callback(module.register_forward_hook(partial(self._add, place)).remove)
            yield

    def matrices(self, place: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """A (r, inputs) and B (outputs, r) of one linear map."""
        if (place, device) not in self._kept:
            before = [sum(each[side] for each in self.widths[:place]) for side in (0, 1)]
            inputs, outputs = self.widths[place]
            a, b = (
                rows[self.rank * start : self.rank * (start + width)]
                for rows, start, width in zip(
                    (self.down, self.up), before, (inputs, outputs), strict=True
                )
            )
            with torch.inference_mode(False):  # they may be needed for gradients later
                self._kept[place, device] = (
                    torch.from_numpy(a.reshape(self.rank, inputs)).to(device),
                    torch.from_numpy(b.reshape(outputs, self.rank)).to(device),
                )
        return self._kept[place, device]

    def _add(self, place: int, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        down, up = self.matrices(place, y.device)
        more = args[0].to(down.dtype) @ down.T @ up.T
        return (y + self.strength * self.scale * more).to(y)

    def _maps(self, vlm: VLM) -> list[nn.Linear]:
        known = dict(vlm.model.named_modules())
        found = [known.get(name) for name in self.modules]
        maps = [each for each in found if isinstance(each, nn.Linear)]
        if tuple((each.in_features, each.out_features) for each in maps) != self.widths:
            raise ArtefactError(
                f"the defense {self.name} adds to {len(self.widths)} linear maps that "
                f"{vlm.name} doesn't have, or not as wide; fit it for this model"
            )
        return maps


# -- trained ---------------------------------------------------------------------------------------


class Adapters:
    """Low-rank additions that are being trained, by PEFT; made by `adapters`."""

    def __init__(self, tuner: Any, modules: Sequence[str], rank: int, scale: float) -> None:
        self.tuner, self.modules, self.rank, self.scale = tuner, tuple(modules), rank, scale
        self.pairs = [self._pair(tuner.model.get_submodule(name)) for name in self.modules]

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [weight for pair in self.pairs for weight in pair]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The bare model while the context is open, and no gradients."""
        self.tuner.disable_adapter_layers()
        try:
            with torch.no_grad():
                yield
        finally:
            self.tuner.enable_adapter_layers()

    def fields(self) -> dict[str, Any]:
        """What was trained, as the fields of a `LowRank`."""
        down, up = (
            np.concatenate(
                [pair[side].detach().float().cpu().numpy().ravel() for pair in self.pairs]
            )
            for side in (0, 1)
        )
        widths = tuple((a.shape[1], b.shape[0]) for a, b in self.pairs)
        return {
            "modules": self.modules,
            "widths": widths,
            "rank": self.rank,
            "scale": self.scale,
            "down": down,
            "up": up,
        }

    @staticmethod
    def _pair(layer: Any) -> tuple[Tensor, Tensor]:
        pair = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        for weight in pair:
            weight.data = weight.data.float()  # small steps are lost in bfloat16
        return pair


@contextmanager
def adapters(
    vlm: VLM, layers: Sequence[int], rank: int, alpha: float, seed: int, spread: float = 0.0
) -> Iterator[Adapters]:
    """Additions of rank r to every linear map of some layers, trainable while the context is open.

    A is drawn as PEFT does, and B from N(0, `spread`²): with 0 nothing is added at first.
    Afterwards the model is what it was. MissingDependencyError without PEFT, UsageError for a rank
    below 1.
    """
    peft = _peft()
    if rank < 1:
        raise UsageError(f"A low-rank addition needs a rank of at least 1, got {rank}.")
    names = linear_maps(vlm, layers)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    with differentiable(vlm), torch.random.fork_rng():
        torch.manual_seed(seed)
        tuner = peft.LoraModel(vlm.model, config, _ADAPTER)
        try:
            made = Adapters(tuner, names, rank, alpha / rank)
            for _, up in made.pairs:
                nn.init.normal_(up, std=spread)
            yield made
        finally:
            tuner.unload()
            vars(vlm.model).pop("peft_config", None)  # which older releases leave


def linear_maps(vlm: VLM, layers: Sequence[int]) -> list[str]:
    """Names of all linear maps of some decoder layers; FitError where there are none."""
    within = {id(module) for layer in layers for module in vlm.anatomy.layers[layer].modules()}
    names = [
        name
        for name, module in vlm.model.named_modules()
        if id(module) in within and isinstance(module, nn.Linear)
    ]
    if not names:
        raise FitError(
            f"the layers of {vlm.name} have no linear maps to add to, as those of a quantised "
            "model don't; load it in another type"
        )
    return names


def descend(
    trained: Adapters, steps: int, rate: float, loss: Callable[[int], Tensor]
) -> list[float]:
    """Train by AdamW on `loss(step)` for some steps; the losses. FitError where one isn't finite,
    UsageError for fewer than one step."""
    if steps < 1:
        raise UsageError(f"Training needs at least one step, got {steps}.")
    optimiser = torch.optim.AdamW(trained.parameters, lr=rate, weight_decay=0.0)
    losses: list[float] = []
    for step in range(steps):
        value = loss(step)
        losses.append(loss_value(value, step, rate))
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters, MAX_NORM)
        optimiser.step()
    return losses


def chunks(count: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Places of `count` examples in batches without end, each example once before any again."""
    left: list[int] = []
    while True:
        while len(left) < size:
            left += rng.permutation(count).tolist()
        yield left[:size]
        left = left[size:]


def batches(items: Sequence[Item], size: int, seed: Sequence[int]) -> Iterator[list[Item]]:
    """Items in batches of at most `size`, as `chunks` draws them."""
    for places in chunks(len(items), min(size, len(items)), np.random.default_rng(seed)):
        yield [items[place] for place in places]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError(
            f"Training low-rank additions needs PEFT, which can't be imported ({error}); run: pip "
            "install 'care-vlm[peft]'"
        ) from error
    return peft
