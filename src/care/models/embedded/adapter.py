"""The trained low-rank adapters of the embedded model, folded into its weights.

    W ← W + S · B A,    A (R, in), B (out, R)

after which the model is a stock one; what was trained whole, its projector, is put in W's place.
How they are trained is a recipe (`recipes/embedded_model`). Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from care.errors import ArtefactError

SCALE = 2.0
"""The factor S of every adapter."""


@torch.no_grad()
def merge_adapter(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fold trained `tensors` into a stock model, in place.

    Their names are `PATH.lora_A` and `PATH.lora_B`, or that of a parameter that was trained whole.
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
