"""Likelihoods of answers that gradients go through, for defenses that are trained.

    log p(y | x) = Σ_t log p(y_t | x, y_<t), teacher-forced

Those that nobody descends are `VLM.score`. Not here: any loss; only that it is a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from care.data.example import Example
from care.errors import FitError
from care.models.vlm import VLM


def logprobs(
    vlm: VLM, examples: Sequence[Example], answers: Sequence[str], *, grad: bool = True
) -> tuple[Tensor, Tensor]:
    """log p of each answer (B,) and how many tokens it has (B,), under the edits active now.

    Answers must have a token. Open `care.models.gradients.differentiable` around it.
    """
    batch = vlm.batch(examples, answers)
    counts = torch.tensor([len(vlm.response_ids(answer)) for answer in answers])
    longest = int(counts.max())
    logits = vlm.forward(batch, logits_to_keep=longest + 1, grad=grad)[:, :-1]
    targets = batch.inputs["input_ids"][:, -longest:].to(logits.device)
    said = (torch.arange(longest) >= longest - counts[:, None]).to(logits.device)
    each = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return torch.where(said, each, 0.0).sum(-1), counts.to(logits.device)


def loss_value(loss: Tensor, steps: int, rate: float) -> float:
    """What a loss () came to after so many steps at that rate; FitError where it isn't finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise FitError(
            f"the loss is {value} after {steps} steps; train at a lower rate than {rate:g}"
        )
    return value
