"""Gradient descent that can be killed: AdamW, its schedule, and checkpoints to go on from.

The loss of a step depends on its number alone, so that a resumed descent takes the same steps as
one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from care.errors import ArtefactError
from care.runs.files import write_whole

Log = Callable[[str], None]


class Checkpoint:
    """Trained tensors (by name), Adam's moments and the step, in one safetensors file."""

    def __init__(self, path: Path, trained: dict[str, nn.Parameter]) -> None:
        self.path, self.trained = path, trained

    def save(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        tensors = {f"value/{n}": p.detach() for n, p in self.trained.items()}
        for name, parameter in self.trained.items():
            state = optimiser.state.get(parameter, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    tensors[f"{moment}/{name}"] = state[moment]
        tensors["step"] = torch.tensor(step)
        write_whole(self.path, save({n: t.contiguous() for n, t in tensors.items()}))

    def load(self, optimiser: torch.optim.Optimizer | None = None) -> int:
        """Put saved values (and, given an optimiser, its moments) back; the step to go on from.

        Raises ArtefactError for a checkpoint that lacks a trained parameter.
        """
        if not self.path.exists():
            return 0
        tensors = load(self.path.read_bytes())
        step = int(tensors["step"])
        missing = [name for name in self.trained if f"value/{name}" not in tensors]
        if missing:
            raise ArtefactError(
                f"The checkpoint {self.path} lacks {missing[0]!r}: it is of another model; delete "
                "it or choose another folder."
            )
        for name, parameter in self.trained.items():
            parameter.data.copy_(tensors[f"value/{name}"])
            if optimiser is not None and f"exp_avg/{name}" in tensors:
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"exp_avg/{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
                }
        return step


def schedule(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: 40 steps of warm-up under a cosine from `peak` to a twentieth."""
    warm = min(1.0, (step + 1) / 40)
    return peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def descend(
    steps: int,
    peak: float,
    checkpoint: Checkpoint,
    loss_at: Callable[[int], tuple[Tensor, str]],
    save_every: int,
    log: Log,
) -> None:
    """AdamW over `checkpoint.trained`, resumed where the checkpoint stands."""
    parameters = list(checkpoint.trained.values())
    optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.0, betas=(0.9, 0.98))
    start, began = checkpoint.load(optimiser), time.monotonic()
    for step in range(start, steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps, peak)
        loss, note = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 10 == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            log(f"step {step + 1}/{steps} loss {loss.item():.3f} {note} {pace:.2f} s/step")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            checkpoint.save(optimiser, step + 1)
