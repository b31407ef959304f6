"""What an exact scan costs: every FFN and attention output of every layer, removed one at a time.

`ratio_vs_full_forward` is how much longer the scan takes with one full forward pass for each
removal than as `care.diagnosis.scan` does it, which runs each removal from its own layer on. The
same prompts (half of them beside a picture), batches, ablation (means per position class) and
figures; whole scans, their own clean passes and checks included, in the order B A B in one process.

`ratio_vs_nnsight` is the same against a scan written with nnsight, which is an extra: `pip install
-e '.[bench]'`. It has one `trace` per removal and takes the last position of the model's logits,
as nnsight's own examples do; `ratio_vs_nnsight_last_logits` is against one that asks the model for
no other logits, which is what `care` does. A trace takes as long for any layer, so only every
sixth removal is timed. Both are null, with `nnsight` saying why, where it can't be imported or
doesn't run. The values of all are compared; differences are in nats, of bfloat16 passes.

`…_cpu` are ratios of CPU time, for a machine that isn't idle. `cache_bytes` is what the scan
remembered of one batch, `cache_bytes_7b` what it would take for Qwen2.5-VL-7B (28 layers, width
3584, bfloat16) with 16 prompts of 1000 tokens.

    python benchmarks/scan.py              # some minutes, about 3 GiB
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.data.small_world import suites
from care.diagnosis.ablation import ablate
from care.diagnosis.activation_means import collect
from care.diagnosis.scan import Removal, scan
from care.models.prompt_cache import plain_positions, position_ids
from care.models.replay import cache_bytes
from care.models.sites import Role, Site, position_classes
from care.models.vlm import VLM

Means = dict[Site, Tensor]

EVERY = 6
"""One in so many removals is timed with nnsight."""


class Timed(NamedTuple):
    """Log-odds (1 + S, N) of a scan, the untouched model first, and what it took."""

    values: np.ndarray
    wall: float
    cpu: float


def timed(call: Callable[[], np.ndarray]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    values = call()
    return Timed(values, time.perf_counter() - wall, time.process_time() - cpu)


def by_replays(vlm: VLM, examples: Sequence[Example], sites: list[Site], means: Means, size: int):
    removals = [Removal((site,), "mean") for site in sites]
    found = scan(vlm, examples, removals, means=means, batch_size=size)
    return np.vstack([found.clean, found.clean + found.effects])


def by_full_passes(
    vlm: VLM, examples: Sequence[Example], sites: list[Site], means: Means, size: int
):
    """The same with a whole pass for each removal; the inputs are encoded once, as there."""

    def work(chunk: list[int]) -> list[list[float]]:
        batch = vlm.batch([examples[index] for index in chunk])
        rows = [vlm.log_odds(vlm.forward(batch, logits_to_keep=1)[:, -1]).tolist()]
        for site in sites:
            with ablate(vlm, [site], "mean", means):
                rows.append(vlm.log_odds(vlm.forward(batch, logits_to_keep=1)[:, -1]).tolist())
        return [list(row) for row in zip(*rows, strict=True)]

    return np.array(vlm.in_batches(list(examples), size, work)).T


def by_nnsight(
    vlm: VLM,
    examples: Sequence[Example],
    sites: list[Site],
    means: Means,
    size: int,
    options: dict[str, Any],
):
    """The same as an nnsight script: one trace for each removal. `options` go to the model."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]  an extra

    traced = NNsight(vlm.model)
    names = {module: name for name, module in vlm.model.named_modules()}

    def envoy(site: Site) -> Any:
        found: Any = traced
        for part in names[vlm.anatomy.module(site)].split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        return found

    def work(chunk: list[int]) -> list[list[float]]:
        batch = vlm.batch([examples[index] for index in chunk])
        inputs = dict(batch.inputs) | {"use_cache": False} | options
        if plain_positions(vlm.model):
            inputs["position_ids"] = position_ids(inputs["attention_mask"])
        mask = (batch.roles != Role.PAD)[..., None]
        classes = position_classes(batch.roles)
        with torch.no_grad():
            with traced.trace(**inputs):
                logits = traced.output.logits.save()
            rows = [vlm.log_odds(logits[:, -1]).tolist()]
            for site in sites:
                module, values = envoy(site), means[site][classes].to(vlm.dtype)
                if site.kind == "mhsa_out":
                    with traced.trace(**inputs):
                        module.output[0][:] = torch.where(mask, values, module.output[0])
                        logits = traced.output.logits.save()
                else:
                    with traced.trace(**inputs):
                        module.output[:] = torch.where(mask, values, module.output)
                        logits = traced.output.logits.save()
                rows.append(vlm.log_odds(logits[:, -1]).tolist())
        return [list(row) for row in zip(*rows, strict=True)]

    return np.array(vlm.in_batches(list(examples), size, work)).T


def nnsight_figures(given: tuple[Any, ...], ours: np.ndarray, wall: float, cpu: float):
    """Both ratios to a scan with nnsight, or nulls and the reason."""
    names = ("ratio_vs_nnsight", "ratio_vs_nnsight_last_logits")
    found: dict[str, Any] = dict.fromkeys((*names, "nnsight_difference"))
    vlm, examples, sites, means, size = given
    rows = [0, *range(1, len(sites) + 1, EVERY)]
    some = (vlm, examples, sites[::EVERY], means, size)
    try:
        import nnsight  # pyright: ignore[reportMissingImports]  an extra
    except ImportError as error:
        return found | {"nnsight": f"not there ({error}): pip install -e '.[bench]'"}
    try:
        by_nnsight(vlm, examples[:1], sites[:1], means, 1, {})  # the first trace compiles
        for name, options in zip(names, ({}, {"logits_to_keep": 1}), strict=True):
            taken = timed(lambda options=options: by_nnsight(*some, options))
            whole = (1 + len(sites)) / len(rows)
            found[name] = round(taken.wall * whole / wall, 2)
            found[name + "_cpu"] = round(taken.cpu * whole / cpu, 2)
            difference = float(np.abs(taken.values - ours[rows]).max())
            found["nnsight_difference"] = round(difference, 4)
            print(f"{name}: {taken.wall:.1f} s for {len(rows)} of {1 + len(sites)}", flush=True)
    except Exception as error:  # whatever another package raises, the rest is worth printing
        return found | {"nnsight": f"{type(error).__name__}: {str(error)[-300:]}"}
    return found | {"nnsight": nnsight.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of an exact scan over layers")
    parser.add_argument("--examples", type=int, default=4, help="prompts, half with a picture")
    parser.add_argument("--batch", type=int, default=4, help="prompts per forward pass")
    parser.add_argument("--dtype", default="bfloat16", help="of the embedded model")
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    vlm = VLM.embedded(arguments.dtype)
    half = arguments.examples // 2
    examples = [*suites.load("pgd-32", "fit", half), *suites.load("text-jailbreak", "fit", half)]
    sites = [*vlm.anatomy.sites("ffn_out"), *vlm.anatomy.sites("mhsa_out")]
    means = collect(vlm, examples, sites, batch_size=arguments.batch).means
    given = (vlm, examples, sites, means, arguments.batch)
    full, ours = [], []
    for kind in ("ours", "full", "ours"):
        run, taken = (by_full_passes, full) if kind == "full" else (by_replays, ours)
        taken.append(timed(lambda run=run: run(*given)))
        print(f"{kind}: {taken[-1].wall:.1f} s, {taken[-1].cpu:.1f} s of CPU", flush=True)
    wall, cpu = (sum(getattr(item, name) for item in ours) / 2 for name in ("wall", "cpu"))
    tokens = max(vlm.batch(examples[:half]).roles.shape[1], 1)
    result: dict[str, Any] = {
        "ratio_vs_full_forward": round(full[0].wall / wall, 2),
        "ratio_vs_full_forward_cpu": round(full[0].cpu / cpu, 2),
        **nnsight_figures(given, ours[0].values, wall, cpu),
        "scan_s": round(wall, 1),
        "largest_difference": round(float(np.abs(full[0].values - ours[0].values).max()), 4),
        "largest_effect": round(float(np.abs(ours[0].values[1:] - ours[0].values[0]).max()), 2),
        "removals": len(sites),
        "examples": len(examples),
        "batch": arguments.batch,
        "cache_bytes": cache_bytes(
            vlm.anatomy.n_layers, arguments.batch, tokens, vlm.anatomy.width, vlm.dtype
        ),
        "cache_bytes_7b": cache_bytes(28, 16, 1000, 3584, torch.bfloat16),
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
