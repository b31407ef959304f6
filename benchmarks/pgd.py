"""What a PGD step costs beside the straightforward loop, on the embedded model.

Both take the same step (the same requests, image, loss and gradient, checked to agree) with frozen
weights. The straightforward loop gives the model every request whole with the image repeated for
each, in its own attention (SDPA), and computes the logits of all positions. A step of `care` passes
the image through the tower once, reads what all requests begin with once, has eager attention, and
computes logits where they count. `speedup` is the median of the ratio of the two in turn;
`speedup_cpu` of CPU time, for a machine that isn't idle. `parts` leaves out one thing at a time:
the ratio to the full step of a step without sharing the beginning, and without either attention or
a contiguous head.

    python benchmarks/pgd.py              # two minutes, about 3 GiB
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from care.attacks.loss import Objective
from care.attacks.preprocessing import PixelPath, to_picture
from care.data.small_world.pictures import seeded
from care.data.small_world.scenes import unrelated
from care.data.small_world.suites import attack_requests
from care.models.gradients import differentiable
from care.models.sites import Role
from care.models.vlm import VLM

Step = Callable[[Tensor], tuple[float, Tensor]]


def straightforward(
    vlm: VLM, objective: Objective, examples: Sequence[Any], texts: list[str]
) -> Step:
    """Loss and gradient as one would first write them down."""
    batch = vlm.batch(examples, texts)
    wanted = torch.where(batch.roles == Role.RESPONSE, batch.inputs["input_ids"], -100)

    def step(pixels: Tensor) -> tuple[float, Tensor]:
        pixels = pixels.detach().requires_grad_()
        values = objective.path(pixels).to(vlm.dtype)
        batch.inputs["pixel_values"] = values.expand(len(batch), *values.shape[1:])
        logits = vlm.forward(batch, grad=True).float()
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
        (gradient,) = torch.autograd.grad(loss, pixels)
        return float(loss.detach()), gradient

    return step


def seconds_of(step: Step, pixels: Tensor) -> tuple[float, float]:
    """Wall and CPU time of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step(pixels)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a PGD step")
    parser.add_argument("--batch", type=int, default=8, help="requests per step")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one warm-up")
    parser.add_argument("--tokens", type=int, default=4, help="response tokens in the loss")
    parser.add_argument("--dtype", default="bfloat16", help="of the embedded model")
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    vlm = VLM.embedded(arguments.dtype)
    examples, targets = attack_requests()
    path, levels = PixelPath.of(vlm, unrelated(seeded("benchmark")))
    examples = [replace(e, images=(to_picture(levels),)) for e in examples[: arguments.batch]]
    targets = targets[: arguments.batch]
    ids = [vlm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in targets]
    texts = [vlm.tokenizer.decode(row[: arguments.tokens]) for row in ids]
    objective = Objective(vlm, path, examples, targets, arguments.tokens)
    rows, pixels = list(range(len(examples))), levels / 255
    whole = Objective(vlm, path, examples, targets, arguments.tokens)
    whole.shares = False
    plain = straightforward(vlm, objective, examples, texts)
    vlm.model.requires_grad_(False)

    def ours(pixels: Tensor) -> tuple[float, Tensor]:
        return objective.gradient(pixels, rows)

    def unshared(pixels: Tensor) -> tuple[float, Tensor]:
        return whole.gradient(pixels, rows)

    def within(step: Step) -> Step:
        def run(pixels: Tensor) -> tuple[float, Tensor]:
            with ExitStack() as stack:
                stack.enter_context(differentiable(vlm))
                return step(pixels)

        return run

    steps: list[Step] = [plain, within(ours), within(unshared), ours]
    found = [step(pixels) for step in steps]
    (loss, gradient), (our_loss, our_gradient) = found[:2]
    cosine = float(functional.cosine_similarity(gradient.flatten(), our_gradient.flatten(), dim=0))
    taken = np.array(
        [[seconds_of(step, pixels) for step in steps] for _ in range(arguments.rounds + 1)]
    )[1:]
    medians = np.median(taken, axis=0)
    ratios = taken[:, :, :] / taken[:, 1:2, :]
    middle = np.median(ratios, axis=0)
    result = {
        "speedup": round(float(middle[0, 0]), 3),
        "speedup_cpu": round(float(middle[0, 1]), 3),
        "step_s": round(float(medians[1, 0]), 3),
        "straightforward_s": round(float(medians[0, 0]), 3),
        "parts": {
            "without_sharing": round(float(middle[2, 0]), 3),
            "sdpa_and_sliced_head": round(float(middle[3, 0]), 3),
        },
        "loss": round(our_loss, 4),
        "loss_straightforward": round(loss, 4),
        "gradient_cosine": round(cosine, 4),
        "shared_tokens": objective.rows.shared,
        "tokens": objective.rows.roles.shape[1],
        "batch": len(rows),
        "target_tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
