"""Low-rank adapters on the embedded model: put in for training, folded away for use.

A wrapped linear map computes  y = W x + S · B (A x)  with W frozen, A (R, in) and B (out, R)
trained; `merge_adapter` replaces W by W + S · B A, after which the model is a stock one again.
The projector is trained whole. Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from care.errors import ArtefactError

SCALE = 2.0
"""The factor S of every adapter."""

PROJECTOR = "multi_modal_projector"
"""Part of the path of the modules that are trained whole."""


class LowRankLinear(nn.Module):
    """A frozen linear map plus a trained low-rank one; masters in float32."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        down = nn.functional.linear(x, self.lora_A.to(x.dtype))
        return self.base(x) + nn.functional.linear(down, (SCALE * self.lora_B).to(x.dtype))


class MasterLinear(nn.Module):
    """A linear map trained whole: float32 masters, computed in the dtype of its input."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach().float())
        self.bias = nn.Parameter(base.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def inject_adapter(model: nn.Module, ranks: dict[str, int]) -> dict[str, nn.Parameter]:
    """Freeze `model`, wrap its linear maps and, with its tower, train its projector whole.

    `ranks` gives a rank per part of a module path ("language_model", "vision_tower"). Returns the
    trained parameters by the names under which `merge_adapter` takes them back.
    """
    model.requires_grad_(False)
    trained: dict[str, nn.Parameter] = {}
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in linears:
        rank = next((r for part, r in ranks.items() if part in name), None)
        if PROJECTOR in name and "vision_tower" in ranks:
            whole = MasterLinear(linear)
            _replace(model, name, whole)
            trained[f"{name}.weight"], trained[f"{name}.bias"] = whole.weight, whole.bias
        elif rank is not None:
            wrapped = LowRankLinear(linear, rank)
            _replace(model, name, wrapped)
            trained[f"{name}.lora_A"], trained[f"{name}.lora_B"] = wrapped.lora_A, wrapped.lora_B
    return trained


@torch.no_grad()
def merge_adapter(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fold trained `tensors` (names as from `inject_adapter`) into a stock model, in place.

    Raises ArtefactError when a tensor names a module that the model lacks, has another shape, or
    when one half of an adapter is missing; the model is then of no use.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        stem, _, half = name.rpartition(".")
        other = {"lora_A": f"{stem}.lora_B", "lora_B": f"{stem}.lora_A"}.get(half)
        if other is not None and other not in tensors:
            raise ArtefactError(f"the trained weights hold {name!r} but not {other!r}")
        if half == "lora_B":
            continue
        target = parameters.get(name if other is None else f"{stem}.weight")
        if target is None:
            raise ArtefactError(f"the trained weights name {name!r}, which this model lacks")
        if other is None:
            update, start = tensor.float(), torch.zeros_like(target, dtype=torch.float32)
        else:
            update, start = SCALE * _product(name, tensors[other], tensor), target.float()
        if update.shape != target.shape:
            raise ArtefactError(
                f"the trained weights give {name!r} shape {tuple(update.shape)}, "
                f"the model has {tuple(target.shape)}"
            )
        target.copy_(start + update)


def _product(name: str, up: Tensor, down: Tensor) -> Tensor:
    """B A (out, in) in float32."""
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise ArtefactError(
            f"the halves of the adapter {name!r} don't fit: {tuple(up.shape)} and "
            f"{tuple(down.shape)}"
        )
    return up.float() @ down.float()
