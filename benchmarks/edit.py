"""What a repair costs while the model runs.

`decode_overhead` is the relative time that a repair adds to one decode step of the embedded model:
three `ffn_out` sites, an image and a text channel at each (K = 64 + 64), both on every token, so
that both corrections and their adaptive fusion are computed for each of the B new tokens. Steps
from the same KV cache, which is cropped after each, are timed four times four in a round: without
the repair, with it, with it, without it, so that a machine whose speed drifts slows both alike. The
figure is the median over the rounds of with over without, less one, and
`decode_overhead_interval` the bootstrap 95 % interval of that median. Hooks are on only in the
steps that are repaired.
`decode_overhead_cpu` is the same of CPU time, for a machine that isn't idle.

`ratio_vs_rebuild` is how much longer an edit takes that builds U Uᵀ (D × D) at each call, as the
released code does, than the factored one of `care.defenses.repair.repair`, on one token at D =
3584, K = 256. Both take the same rows and are medians.

    python benchmarks/edit.py              # six minutes, about 2 GiB
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from care.data.example import Example
from care.defenses.repair.channel import Channel
from care.defenses.repair.edit import ChannelEdit
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models.caches import cache_argument
from care.models.prompt_cache import position_ids
from care.models.sites import Role, Site
from care.models.vlm import VLM

STEPS = 4
PROMPT = "Explain step by step how to repair the flat tyre of a bicycle."


def channels(site: Site, width: int, rank: int) -> tuple[Channel, Channel]:
    """An image and a text channel on every token, so weak that they change no answer's length."""
    mean = np.zeros(width)
    return tuple(
        Channel(site, modality, ("all",), random_subspace(width, rank, mean, seed), 0.01)
        for seed, modality in enumerate(("image", "text"))
    )  # pyright: ignore[reportReturnType]  two of them


class Seconds(NamedTuple):
    """What a call took."""

    wall: float
    cpu: float


def seconds_of(call: Callable[[], Any]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def medians(taken: Sequence[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(column) for column in zip(*taken, strict=True)))


def decode_step(vlm: VLM, batch: int) -> Callable[[], None]:
    """One decode step of `batch` rows, always from the same cached prompt."""
    inputs = vlm.batch([Example(id=str(i), prompt=PROMPT) for i in range(batch)]).inputs
    mask = inputs["attention_mask"]
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    common = {cache_argument(vlm.model): cache, "use_cache": True, "logits_to_keep": 1}
    roles = torch.full((batch, 1), int(Role.RESPONSE))
    output = vlm.model(**inputs, position_ids=position_ids(mask), **common)
    step = {
        "input_ids": output.logits[:, -1:].argmax(-1),
        "attention_mask": torch.cat([mask, mask.new_ones(batch, 1)], dim=1),
        "position_ids": mask.sum(1, keepdim=True),
    }

    def run() -> None:
        with vlm.known_roles(roles, answering=True):  # as `VLM.generate` does
            vlm.model(**step, **common)
        cache.crop(-1)

    return run


@torch.inference_mode()
def decode_overhead(vlm: VLM, batch: int, rank: int, repeats: int) -> dict[str, Any]:
    """Median over rounds of the time of repaired steps over that of plain ones beside them."""
    layers, width = vlm.anatomy.n_layers, vlm.anatomy.width
    sites = [Site(layers * part // 4, "ffn_out") for part in (1, 2, 3)]
    repair = Repair(tuple(c for site in sites for c in channels(site, width, rank)))
    step = decode_step(vlm, batch)
    taken: dict[bool, list[Seconds]] = {False: [], True: []}
    for _ in range(repeats + 2):
        for repaired in (False, True, True, False):
            with repair.applied(vlm) if repaired else nullcontext():
                step()  # the first step in a context makes the tensors of the repair
                taken[repaired] += [seconds_of(step) for _ in range(STEPS)]
    plain, edited = (np.array(taken[key]).reshape(-1, 2 * STEPS, 2)[2:] for key in (False, True))
    ratios = edited.sum(axis=1) / plain.sum(axis=1) - 1  # (rounds, wall and cpu)
    drawn = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    limits = np.quantile(np.median(ratios[drawn, 0], axis=1), [0.025, 0.975])
    return {
        "decode_overhead": round(float(np.median(ratios[:, 0])), 4),
        "decode_overhead_interval": [round(float(limit), 4) for limit in limits],
        "decode_overhead_cpu": round(float(np.median(ratios[:, 1])), 4),
        "rounds": len(ratios),
        "step_ms": round(1e3 * float(np.median(plain[..., 0])), 2),
        "repaired_step_ms": round(1e3 * float(np.median(edited[..., 0])), 2),
        "sites": [str(site) for site in sites],
        "batch": batch,
        "dtype": str(vlm.dtype).removeprefix("torch."),
    }


@torch.inference_mode()
def ratio_vs_rebuild(width: int, rank: int, tokens: int, repeats: int) -> Seconds:
    """Time of an edit that builds U Uᵀ at each call over that of the factored one, float32."""
    channel = channels(Site(0, "ffn_out"), width, rank)[0]
    factored = ChannelEdit([channel], "adaptive")  # the product's edit, without a model around it
    u, mean = (torch.from_numpy(part) for part in (channel.subspace.basis, channel.subspace.mean))
    h = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0))
    roles = torch.full((1, tokens), int(Role.RESPONSE))

    def rebuilt() -> Tensor:
        return h - channel.strength * (h - mean) @ (u @ u.T)

    torch.testing.assert_close(factored(h, roles), rebuilt(), atol=1e-4, rtol=1e-4)
    taken = [(seconds_of(rebuilt), seconds_of(lambda: factored(h, roles))) for _ in range(repeats)]
    slow, fast = (medians(column) for column in zip(*taken, strict=True))
    return Seconds(slow.wall / fast.wall, slow.cpu / fast.cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a repair at run time")
    parser.add_argument("--batch", type=int, default=8, help="rows decoded together")
    parser.add_argument("--rank", type=int, default=64, help="K of each of the two channels")
    parser.add_argument("--repeats", type=int, default=200, help="timed rounds of 16 steps")
    parser.add_argument("--dtype", default="bfloat16", help="of the embedded model")
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ratios = {tokens: ratio_vs_rebuild(3584, 256, tokens, repeats=9) for tokens in (1, 64, 512)}
    print(f"U Uᵀ at each call over factored, by tokens: {ratios}", flush=True)
    vlm = VLM.embedded(arguments.dtype)
    result = decode_overhead(vlm, arguments.batch, arguments.rank, arguments.repeats)
    result |= {
        "ratio_vs_rebuild": round(ratios[1].wall, 1),
        "ratio_vs_rebuild_cpu": round(ratios[1].cpu, 1),
        "ratio_64_tokens": round(ratios[64].wall, 1),
        "ratio_512_tokens": round(ratios[512].wall, 1),
        "rank": arguments.rank,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
