"""What the neuron estimates cost and how good they are, on the embedded model.

`forward_equivalents` is the wall time of the default estimate (attribution patching between pairs,
all 46 080 neurons) over that of a plain forward pass of the same benign prompts in the same
batches; encoding is part of both. `per_prompt` is the same over a plain pass of all prompts that
take part, attacks and benign ones. Both are medians of alternating rounds; `…_cpu` are the same of
CPU time, for a machine that isn't idle. `nominal` counts a forward pass as one and a backward pass
as two.

`spearman` and `precision_at_8` compare the estimates with exact patching, over the top 0.1 % of all
neurons and as many random ones of the same size. The pairs are the same request beside an
adversarial picture and beside an unrelated one.

    python benchmarks/neurons.py              # three minutes, about 4 GiB
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch

from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.data.small_world.suites import load
from care.diagnosis.neurons.attribution_patching import Method, estimate
from care.diagnosis.neurons.interventions import between_pairs
from care.diagnosis.neurons.search import NeuronConfig, find_neurons
from care.models.vlm import VLM


def picture_pairs(n: int) -> list[Pair]:
    """The same malicious request beside an adversarial and beside an unrelated picture."""
    attacks, plain = (load(name, "fit", n).examples for name in ("pgd-32", "beside-image"))
    return [
        Pair(attack, Example(f"plain-{k}", attack.prompt, other.images, attack.goal))
        for k, (attack, other) in enumerate(zip(attacks, plain, strict=True))
    ]


def seconds_of(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU time of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def plain_pass(vlm: VLM, examples: Sequence[Example], batch_size: int) -> None:
    """One forward pass over all examples, in the batches of an estimate."""

    def work(chunk: list[int]) -> list[int]:
        vlm.forward(vlm.batch([examples[index] for index in chunk]), logits_to_keep=1)
        return chunk

    vlm.in_batches(list(examples), batch_size, work)


def cost(vlm: VLM, pairs: Sequence[Pair], batch_size: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of plain passes and estimates in turn."""
    question = between_pairs(pairs)
    attacks = [pair.attack for pair in pairs]
    calls: list[Callable[[], Any]] = [
        lambda: plain_pass(vlm, question.examples, batch_size),
        lambda: plain_pass(vlm, attacks, batch_size),
        lambda: estimate(vlm, question, batch_size=batch_size),
    ]
    taken = np.array([[seconds_of(call) for call in calls] for _ in range(rounds + 1)])
    plain, others, whole = np.median(taken[1:], axis=0)
    result: dict[str, Any] = {
        "plain_s": round(float(plain[0]), 2),
        "estimate_s": round(float(whole[0]), 2),
    }
    for clock, ending in enumerate(("", "_cpu")):
        result[f"forward_equivalents{ending}"] = round(float(whole[clock] / plain[clock]), 3)
        result[f"per_prompt{ending}"] = round(float(whole[clock] / (plain + others)[clock]), 3)
    return result | {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description="cost and quality of neuron estimates")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of prompts")
    parser.add_argument("--batch", type=int, default=16, help="examples per forward pass")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one warm-up")
    parser.add_argument("--method", choices=get_args(Method), default="atp", help="for the quality")
    parser.add_argument("--steps", type=int, default=8, help="of integrated gradients")
    parser.add_argument("--scope", default=None, help="tokens; all if not given, as pairs align")
    parser.add_argument("--verified", type=int, default=None, help="0.1 %% if not given")
    parser.add_argument("--dtype", default="bfloat16", help="of the embedded model")
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    vlm, pairs = VLM.embedded(arguments.dtype), picture_pairs(arguments.pairs)
    result = cost(vlm, pairs, arguments.batch, arguments.rounds)
    print(result, flush=True)
    config = NeuronConfig(
        method=arguments.method,
        steps=arguments.steps,
        verified=arguments.verified,
        described=0,
        batch_size=arguments.batch,
    )
    scopes = None if arguments.scope is None else (arguments.scope,)
    seconds = time.perf_counter()
    report = find_neurons(vlm, between_pairs(pairs, scopes=scopes), config=config)
    result |= {
        "nominal": report.forward_equivalents,
        "n_neurons": report.n_neurons,
        "spearman": round(report.spearman.rate, 4),
        "spearman_interval": [round(report.spearman.low, 4), round(report.spearman.high, 4)],
        "precision_at_8": report.precision[8],
        "precision": report.precision,
        "control_ratio": round(report.control_ratio, 2),
        "verified": len(report.found),
        "method": report.method,
        "scopes": report.scopes,
        "pairs": len(pairs),
        "batch": arguments.batch,
        "whole_s": round(time.perf_counter() - seconds, 1),
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
