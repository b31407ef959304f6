"""Low-rank adapters put into the embedded model for training; the package folds them away.

A wrapped linear map computes  y = W x + S · B (A x)  with W frozen, A (R, in) and B (out, R)
trained; `care.models.embedded.adapter.merge_adapter` replaces W by W + S · B A. The projector is
trained whole. Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from care.models.embedded.adapter import SCALE

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
