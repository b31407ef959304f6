"""What a repair costs while a model runs, as hooks, as weights and as monitors, last line JSON.

Two models: the embedded one, and a stack of random layers as wide as those of a large model
(D = 4096, F = 11008, two layers, LLaMA's kind), where products of weights outweigh everything
else. On each an ungated image and text channel at one `ffn_out` site of every second layer (K = 16
each, all tokens, added up), as hooks and folded into weights.

    decode, prefill     time of a decode step, or of reading a prompt, over the bare model's just
                        before, less one: the median over rounds of alternating calls
    collection          speed of a pass that records the activations of all `layer_out` sites at the
                        last position, over that of a plain pass
    peak                greatest memory of the process (MiB), after each part
    monitors            with --repair DIR: seconds of the answers under its monitors over the bare
                        model's, less one (embedded model)

    python benchmarks/export.py --threads 1 --rounds 30 --repair runs/demo/repair
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from care.data.example import Example
from care.defenses.base import answers_under
from care.defenses.folded_weights import FoldedWeights, folds
from care.defenses.linear_parts import affine_maps
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models.caches import cache_argument
from care.models.hooks import read
from care.models.sites import Role, Site
from care.models.vlm import VLM

RANK = 16
PROMPT = "Explain step by step how to repair the flat tyre of a bicycle. " * 4
Call = Callable[[], Any]


def linear_repair(vlm: VLM) -> Repair:
    """Weak channels that weights can hold, at every second layer."""
    width = vlm.anatomy.width
    channels = [
        Channel(
            Site(layer, "ffn_out"),
            modality,
            ("all",),
            random_subspace(width, RANK, np.zeros(width), seed),
            0.01,
        )
        for layer in range(0, vlm.anatomy.n_layers, 2)
        for seed, modality in enumerate(("image", "text"))
    ]
    return Repair(tuple(channels), "sum")


def seconds(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def overhead(call: Call, context: Callable[[], AbstractContextManager[Any]], rounds: int) -> float:
    """Median of the time of a call within a context over that without it, less one."""
    ratios = []
    for place in range(rounds + 2):
        taken = {False: 0.0, True: 0.0}
        for inside in (False, True, True, False):
            with context() if inside else nullcontext():
                call()
                taken[inside] += seconds(call)
        if place > 1:  # the first rounds warm up
            ratios.append(taken[True] / taken[False] - 1)
    return round(statistics.median(ratios), 4)


def calls(vlm: VLM, batch: int) -> dict[str, Call]:
    """A decode step from a cached prompt, and the reading of the prompt."""
    model = vlm.model
    ids = vlm.tokenizer([PROMPT] * batch, return_tensors="pt")["input_ids"]
    cache = DynamicCache(config=model.config.get_text_config())
    common = {cache_argument(model): cache, "use_cache": True, "logits_to_keep": 1}
    with torch.inference_mode():
        model(input_ids=ids, **common)
    response = torch.full((batch, 1), int(Role.RESPONSE))
    prompt = torch.full(ids.shape, int(Role.TEXT))

    def decode() -> None:
        with torch.inference_mode(), vlm.known_roles(response, answering=True):
            model(input_ids=ids[:, :1], **common)
        cache.crop(-1)

    def prefill() -> None:
        with torch.inference_mode(), vlm.known_roles(prompt):
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

    return {"decode": decode, "prefill": prefill}


def costs(vlm: VLM, batch: int, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    repair = linear_repair(vlm)
    weights = FoldedWeights(folds(vlm, affine_maps(repair)))
    found: dict[str, Any] = {}
    for name, call in calls(vlm, batch).items():
        found[f"{name}_hook"] = overhead(call, lambda: repair.applied(vlm), rounds)
        # Folding takes a while, so weights are changed once and compared with the bare model after.
        found[f"{name}_merged"] = merged_overhead(call, weights, vlm, rounds)
        found[f"{name}_ms"] = round(1e3 * statistics.median(seconds(call) for _ in range(5)), 2)
    sites = vlm.anatomy.sites("layer_out")
    recording = overhead(calls(vlm, batch)["prefill"], lambda: read(vlm, sites), rounds)
    found["collection_speed"] = round(1 / (1 + recording), 3)
    found["peak_mib"] = peak()
    return found


def merged_overhead(call: Call, weights: FoldedWeights, vlm: VLM, rounds: int) -> float:
    """The same of other weights of equal shapes, which are swapped between blocks of calls."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    for inside in (False, True, True, False):
        with weights.applied(vlm) if inside else nullcontext():
            call()
            taken[inside] += [seconds(call) for _ in range(rounds)]
    bare, own = (statistics.median(taken[key]) for key in (False, True))
    return round(own / bare - 1, 4)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def monitors_overhead(vlm: VLM, folder: str, rounds: int) -> float:
    """Seconds of 24-token answers under a repair's monitors over the bare model's, less one."""
    repair = Repair.load(folder, vlm)
    asked = [Example(id=str(place), prompt=PROMPT) for place in range(8)]
    how = {"batch_size": 8, "max_new_tokens": 24}
    ratios = []
    for _ in range(max(2, rounds // 5)):
        bare = seconds(lambda: answers_under(None, vlm, asked, **how))
        ratios.append(seconds(lambda: answers_under(repair, vlm, asked, **how)) / bare - 1)
    return round(statistics.median(ratios[1:]), 4)


class Wide(VLM):
    """A text model alone, in the place of a vision-language model: there is nothing to look at."""

    def __init__(self, width: int, layers: int, tokenizer: Any) -> None:
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 43 // 16,
            num_hidden_layers=layers,
            num_attention_heads=width // 128,
            num_key_value_heads=width // 128,
            vocab_size=len(tokenizer),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.config.image_token_id = 0
        self.take(model, tokenizer)

    def take(self, model: Any, tokenizer: Any) -> None:
        """What of a VLM these measurements need."""
        from care.models.anatomy import Anatomy
        from care.models.sites import RoleContext

        self.anatomy, self.model, self.tokenizer = Anatomy.of(model), model.eval(), tokenizer
        self.roles, self.name = RoleContext(), "wide"

    def batch(self, *_: Any) -> Any:
        """A few tokens, for the pass that finds the map of a site."""
        return torch.arange(1, 9)[None]

    def forward(self, batch: Any, **_: Any) -> Any:
        with torch.inference_mode(), self.known_roles(torch.full(batch.shape, int(Role.TEXT))):
            return self.model(input_ids=batch, use_cache=False).logits


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a repair as hooks, weights, monitors")
    parser.add_argument("--batch", type=int, default=4, help="rows at once")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds")
    parser.add_argument("--width", type=int, default=4096, help="D of the wide stack; 0: none")
    parser.add_argument("--layers", type=int, default=2, help="its layers")
    parser.add_argument("--repair", default=None, help="folder of a repair with monitors")
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice if not given")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    vlm = VLM.embedded()
    result: dict[str, Any] = {"embedded": costs(vlm, asked.batch, asked.rounds)}
    print(result, flush=True)
    if asked.repair:
        result["monitors"] = monitors_overhead(vlm, asked.repair, asked.rounds)
    if asked.width:
        wide = Wide(asked.width, asked.layers, vlm.tokenizer)
        result["wide"] = costs(wide, asked.batch, asked.rounds) | {"width": asked.width}
    result |= {"batch": asked.batch, "rounds": asked.rounds, "threads": torch.get_num_threads()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
