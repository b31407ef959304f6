"""What a repair costs vLLM at decoding (docs/vllm.md).

    python benchmarks/plugin.py --repair runs/demo/repair            # where vLLM is installed

Repairs are served as `care export --format vllm --drop monitors` has it (`edits`), and as `care
serve --engine vllm` has it (`opened`: `--drop monitors,gates --off WORD`), asked with the word, as
most requests are there. Processor seconds of the process are told, with one thread, since these
hardly depend on what else the machine does.

In an eager engine the plugin's hooks are timed within each step, and taken off and put on again at
every second one: "inside" is their time over that of the rest of the same step, which a busy
machine hardly blurs, and "ratio" that of whole steps with hooks to the neighbouring ones without.
Both are ratios of sums, with 95% intervals (bootstrap over pairs of steps). The embedded model is
small, so that the share of edits is greater there than on a model of billions of weights. A
compiled engine can't be changed so, and isn't measured here.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from care.interfaces.vllm.command import settings_for
from care.interfaces.vllm.layers import EDIT
from care.interfaces.vllm.limits import REQUESTS
from care.interfaces.vllm.settings import KEY, OFF
from care.statistics.bootstrap import bootstrap_ratio
from care.statistics.intervals import Interval
from care.typed import to_tree

WORD = "a-word-of-the-benchmark"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PROMPT = "Tell me of cars."
WAYS: dict[str, dict[str, str]] = {"edits": {}, "opened": {OFF: WORD}}
"""What is served, and what its requests hold."""


class Work:
    """One engine in this process."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        self._llm, self._asked = LLM(**options), 0

    def _params(self, tokens: int, arguments: dict[str, str]) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        return SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=arguments
        )

    def steps(self, clients: int, tokens: int, arguments: dict[str, str]) -> list[list[float]]:
        """Processor milliseconds a token of neighbouring steps with the plugin's hooks and without,
        and of the first in the hooks."""
        engine, plugin = self._llm.llm_engine, Hooks(self._llm)
        params = self._params(2 * tokens + clients + 8, arguments)
        names = [f"{self._asked}-{n}" for n in range(clients)]
        self._asked += 1
        for name in names:
            engine.add_request(name, {"prompt": PROMPT}, params)
        for _ in range(clients + 4):  # after that all prompts were read
            engine.step()
        pairs = []
        for number in range(tokens):
            found = {}
            for on in (True, False) if number % 2 else (False, True):
                plugin.put(on)
                plugin.seconds, start = 0.0, time.process_time()
                engine.step()
                found[on] = (time.process_time() - start, plugin.seconds)
            (with_it, inside), (without, _) = found[True], found[False]
            pairs.append([1e3 * each / clients for each in (with_it, without, inside)])
        plugin.put(True)
        engine.abort_request(names)
        while engine.has_unfinished_requests():
            engine.step()
        return pairs


class Hooks:
    """All hooks of the plugin on the model of an eager engine, and the time they take."""

    def __init__(self, llm: Any) -> None:
        worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        model, self.seconds = worker.get_model(), 0.0
        edited = [m for m in model.modules() if any(n.startswith(EDIT) for n in m._modules)]
        places = [m._forward_hooks for m in edited] + [model._forward_pre_hooks]
        assert edited and all(places), "the plugin has no hooks here"
        self._hooks = [(place, {n: self._timed(hook) for n, hook in place.items()})
                       for place in places]  # fmt: skip

    def put(self, on: bool) -> None:
        """On or off."""
        for place, hooks in self._hooks:
            place.clear()
            place.update(hooks if on else {})

    def _timed(self, hook: Any) -> Any:
        hook = getattr(hook, "__wrapped__", hook)

        @functools.wraps(hook)
        def timed(*args: Any) -> Any:
            start = time.process_time()
            try:
                return hook(*args)
            finally:
                self.seconds += time.process_time() - start

        return timed


def work(options: dict[str, Any]) -> None:
    """An engine that is asked by lines of JSON, and answers by such."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    own = Work(options)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(own, asked.pop("what"))(**asked)), file=out, flush=True)


class Engine:
    """A process that answers."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(options)],
            env=os.environ | ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **asked: Any) -> list[Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("An engine ended.")
        return json.loads(line)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def options_of(folder: Path, repair: Path) -> dict[str, dict[str, Any]]:
    """What an engine of the embedded model takes, each way."""
    from care.models.vlm import VLM

    vlm = VLM.embedded(dtype="float32")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    common = {
        "model": str(folder), "dtype": "float32", "max_model_len": 512, "max_num_seqs": 64,
        "gpu_memory_utilization": 0.3, "model_impl": "transformers", "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 0}, "enable_prefix_caching": False,
    }  # fmt: skip
    said = {
        "edits": settings_for(repair, edits_only=True),
        "opened": settings_for(repair, edits_only=True, opened=True, word=WORD),
    }
    more = {
        name: {"additional_config": {KEY: to_tree(each, name)}, "logits_processors": [REQUESTS]}
        for name, each in said.items()
    }
    return {name: common | more[name] for name in WAYS}


def compared(pairs: list[list[float]]) -> dict[str, Any]:
    """Of pairs with the repair and without."""
    ours, stock, inside = zip(*pairs, strict=True)
    rest = [whole - part for whole, part in zip(ours, inside, strict=True)]
    return {
        "processor ms a token": [round(sum(each) / len(pairs), 3) for each in (ours, stock)],
        "ratio": limits(bootstrap_ratio(ours, stock)),
        "inside": limits(bootstrap_ratio(inside, rest)),
    }


def limits(found: Interval) -> list[float]:
    """An estimate and its limits."""
    return [round(each, 4) for each in (found.rate, found.low, found.high)]


def by_steps(options: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Each way in an eager engine of its own, one after the other."""
    told: dict[str, Any] = {}
    for way in given.ways:
        engine, arguments = Engine(options[way]), WAYS[way]
        try:
            for clients in given.clients:
                asked = {"what": "steps", "clients": clients, "arguments": arguments}
                engine.ask(**asked, tokens=2)
                found = compared(engine.ask(**asked, tokens=given.pairs))
                told[f"{way}, {clients} at once"] = found
                print(way, clients, json.dumps(found), flush=True)
        finally:
            engine.end()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="what a repair costs vLLM at decoding")
    parser.add_argument("--repair", type=Path, default=Path("runs/demo/repair"))
    parser.add_argument("--ways", choices=tuple(WAYS), nargs="+", default=list(WAYS))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--pairs", type=int, default=40, help="of steps")
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
    with tempfile.TemporaryDirectory() as folder:
        told = by_steps(options_of(Path(folder, "model"), given.repair), given)
    print(json.dumps(told | {"pairs": given.pairs}))


if __name__ == "__main__":
    main()
