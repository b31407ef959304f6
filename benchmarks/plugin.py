"""What a repair costs vLLM at decoding: stock vLLM beside vLLM with the plugin (docs/vllm.md).

    python benchmarks/plugin.py --repair runs/demo/repair        # where vLLM is installed

Engines, each in a process of its own with one thread, answer the same prompts in turns: `stock`
without a repair; `edits` as `care export --format vllm --drop monitors` has it; `opened` as
`care serve --engine vllm` has it (`--drop monitors,gates --off WORD`), asked with the word (`off`,
most requests) and without (`on`, after an alarm). Processor seconds of the process a token hardly
depend on what else the machine does; wall time does. "cpu" and "wall" are ratios to stock over the
paired rounds, with their 95% intervals (bootstrap over rounds). The embedded model is small, so
that the share of edits is greater there than on a model of billions of weights. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from care.interfaces.vllm.command import settings_for
from care.interfaces.vllm.limits import REQUESTS
from care.interfaces.vllm.settings import KEY, OFF
from care.statistics.bootstrap import bootstrap_ratio
from care.typed import to_tree

WORD = "a-word-of-the-benchmark"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
WAYS = {
    "stock": ("stock", {}),
    "edits": ("edits", {}),
    "off": ("opened", {OFF: WORD}),
    "on": ("opened", {}),
}


def work(options: dict[str, Any]) -> None:
    """One engine: a line of JSON asks for answers, and one tells what they cost."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    from vllm import LLM, SamplingParams

    llm = LLM(**options)

    def answer(asked: dict[str, Any]) -> dict[str, float]:
        # The prompts differ by time and place, so that no cache knows them.
        prompts = [
            f"{time.perf_counter_ns()} {n} Tell me of cars." for n in range(asked["clients"])
        ]
        how = SamplingParams(
            temperature=0,
            max_tokens=asked["tokens"],
            ignore_eos=True,
            extra_args=asked["arguments"],
        )
        cpu, wall = time.process_time(), time.perf_counter()
        found = llm.generate(prompts, how, use_tqdm=False)
        tokens = sum(len(each.outputs[0].token_ids) for each in found)
        return {
            "cpu": 1e3 * (time.process_time() - cpu) / tokens,
            "wall": 1e3 * (time.perf_counter() - wall) / tokens,
        }

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


class Engine:
    """A process that answers."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(options)],
            env=os.environ | ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **asked: Any) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("An engine ended.")
        return json.loads(line)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def engines(folder: Path, repair: Path, eager: bool) -> dict[str, Engine]:
    """One of each kind, all of the embedded model."""
    from care.models.vlm import VLM

    vlm = VLM.embedded(dtype="float32")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    common = {
        "model": str(folder), "dtype": "float32", "max_model_len": 512, "max_num_seqs": 64,
        "gpu_memory_utilization": 0.3, "model_impl": "transformers", "enforce_eager": eager,
        "limit_mm_per_prompt": {"image": 0}, "enable_prefix_caching": False,
    }  # fmt: skip
    said = {
        "edits": settings_for(repair, edits_only=True),
        "opened": settings_for(repair, edits_only=True, opened=True, word=WORD),
    }
    repaired = {
        name: {"additional_config": {KEY: to_tree(each, name)}, "logits_processors": [REQUESTS]}
        for name, each in said.items()
    }
    return {name: Engine(common | repaired.get(name, {})) for name in ("stock", *said)}


def measured(asked: dict[str, Engine], clients: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a token, and ratios to stock."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):  # the first is warm-up
        for way in random.Random(number).sample(list(WAYS), len(WAYS)):
            name, arguments = WAYS[way]
            told = asked[name].ask(clients=clients, tokens=tokens, arguments=arguments)
            if number:
                found[way].append(told)
        print(clients, number, {way: each[-1:] for way, each in found.items()}, flush=True)
    told: dict[str, Any] = {}
    for way, each in found.items():
        for kind in ("cpu", "wall"):
            own, stock = ([one[kind] for one in rows] for rows in (each, found["stock"]))
            ratio = bootstrap_ratio(own, stock)
            told.setdefault(way, {})[kind] = {
                "ms a token": round(sum(own) / rounds, 3),
                "ratio": [round(x, 4) for x in (ratio.rate, ratio.low, ratio.high)],
            }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="what a repair costs vLLM at decoding")
    parser.add_argument("--repair", type=Path, default=Path("runs/demo/repair"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.loads(given.work))
        return
    if find_spec("vllm") is None:
        print(json.dumps({"skipped": "vLLM isn't installed here; docs/vllm.md says how"}))
        return
    if not given.repair.is_dir():
        raise SystemExit(f"There is no repair in {given.repair}; run make demo, or pass --repair.")
    told: dict[str, Any] = {"tokens": given.tokens, "rounds": given.rounds, "eager": given.eager}
    with tempfile.TemporaryDirectory() as folder:
        asked = engines(Path(folder, "model"), given.repair, given.eager)
        try:
            for clients in given.clients:
                told[f"{clients} at once"] = measured(asked, clients, given.tokens, given.rounds)
        finally:
            for each in asked.values():
                each.end()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
