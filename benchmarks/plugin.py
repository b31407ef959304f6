"""What a repair costs vLLM at decoding (docs/vllm.md).

    python benchmarks/plugin.py --repair runs/demo/repair            # where vLLM is installed
    python benchmarks/plugin.py --compiled                           # engines beside each other

Repairs are served as `care export --format vllm --drop monitors` has it (`edits`), and as `care
serve --engine vllm` has it (`opened`: `--drop monitors,gates --off WORD`), asked with the word, as
most requests are there. Processor seconds of the process are told, with one thread, since these
hardly depend on what else the machine does.

In one eager engine the plugin's hooks are taken off and put on again at every second step, and two
neighbouring steps are a pair: that is fine enough for a per cent on a busy machine. A compiled
engine can't be changed, so there a stock one, in a process of its own, answers in turns with it. A
ratio is that of the sums, with its 95% interval (bootstrap over pairs or rounds). The embedded
model is small, so that the share of edits is greater there than on a model of billions of weights.
The last line is one JSON object.
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
from care.interfaces.vllm.layers import EDIT
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
PROMPT = "Tell me of cars."
WAYS: dict[str, dict[str, str]] = {"edits": {}, "opened": {OFF: WORD}}
"""What is served, and what its requests hold."""


class Work:
    """One engine in this process."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm, self._asked = LLM(**options), 0

    def _params(self, tokens: int, arguments: dict[str, str]) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=arguments
        )

    def answers(self, clients: int, tokens: int, arguments: dict[str, str]) -> list[float]:
        """Processor milliseconds a token of answers, prompts included."""
        start = time.process_time()
        self._llm.generate([PROMPT] * clients, self._params(tokens, arguments), use_tqdm=False)
        return [1e3 * (time.process_time() - start) / (clients * tokens)]

    def steps(self, clients: int, tokens: int, arguments: dict[str, str]) -> list[list[float]]:
        """Pairs of the same for neighbouring steps: with the plugin's hooks, and without."""
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
                start = time.process_time()
                engine.step()
                found[on] = 1e3 * (time.process_time() - start) / clients
            pairs.append([found[True], found[False]])
        plugin.put(True)
        engine.abort_request(names)
        while engine.has_unfinished_requests():
            engine.step()
        return pairs


class Hooks:
    """All hooks of the plugin on the model of an eager engine."""

    def __init__(self, llm: Any) -> None:
        worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        model = worker.get_model()
        edited = [m for m in model.modules() if any(n.startswith(EDIT) for n in m._modules)]
        self._hooks = [(m._forward_hooks, dict(m._forward_hooks)) for m in edited]
        self._hooks.append((model._forward_pre_hooks, dict(model._forward_pre_hooks)))
        assert all(each for _, each in self._hooks), "the plugin has no hooks here"

    def put(self, on: bool) -> None:
        """On or off."""
        for place, hooks in self._hooks:
            place.clear()
            place.update(hooks if on else {})


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


def options_of(folder: Path, repair: Path, eager: bool) -> dict[str, dict[str, Any]]:
    """What a stock engine of the embedded model takes, and what each way does."""
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
    more = {
        name: {"additional_config": {KEY: to_tree(each, name)}, "logits_processors": [REQUESTS]}
        for name, each in said.items()
    }
    return {"stock": common} | {name: common | more[name] for name in WAYS}


def compared(pairs: list[list[float]]) -> dict[str, Any]:
    """Of pairs with the repair and without."""
    ours, stock = ([pair[n] for pair in pairs] for n in (0, 1))
    ratio = bootstrap_ratio(ours, stock)
    return {
        "processor ms a token": [round(sum(each) / len(pairs), 3) for each in (ours, stock)],
        "ratio": [round(each, 4) for each in (ratio.rate, ratio.low, ratio.high)],
    }


def by_steps(options: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Each way in an eager engine of its own, one after the other."""
    told: dict[str, Any] = {}
    for way, arguments in WAYS.items():
        engine = Engine(options[way])
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


def by_engines(options: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Engines beside each other, asked in turns."""
    engines = {name: Engine(each) for name, each in options.items()}
    told: dict[str, Any] = {}
    try:
        for clients in given.clients:
            rounds: dict[str, list[float]] = {name: [] for name in engines}
            for number in range(given.pairs + 1):  # the first is warm-up
                for name in random.Random(number).sample(list(engines), len(engines)):
                    asked = {"clients": clients, "tokens": 8, "arguments": WAYS.get(name, {})}
                    found = engines[name].ask(what="answers", **asked)
                    rounds[name] += found if number else []
            for way in WAYS:
                pairs = [list(pair) for pair in zip(rounds[way], rounds["stock"], strict=True)]
                told[f"{way}, {clients} at once"] = found = compared(pairs)
                print(way, clients, json.dumps(found), flush=True)
    finally:
        for each in engines.values():
            each.end()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="what a repair costs vLLM at decoding")
    parser.add_argument("--repair", type=Path, default=Path("runs/demo/repair"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--pairs", type=int, default=40, help="of steps, or of rounds")
    parser.add_argument("--compiled", action="store_true", help="as vLLM is unless it is told")
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
        options = options_of(Path(folder, "model"), given.repair, eager=not given.compiled)
        told = (by_engines if given.compiled else by_steps)(options, given)
    print(json.dumps(told | {"pairs": given.pairs, "compiled": given.compiled}))


if __name__ == "__main__":
    main()
