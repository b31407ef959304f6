"""Requests a second, processor time a token, time to the first token: bare, under edits, with
monitors (`care serve`).

    python benchmarks/serve.py --repair runs/demo/repair      # transformers, the embedded model
    python benchmarks/serve.py --engine vllm --vllm-args '…'  # vLLM as its child, where installed
    python benchmarks/serve.py --url URL --off WORD           # a running vLLM: bare, and repaired

One server at a time, the same harmless requests (half of them beside a picture) at 1, 8 and 64
clients, each of which asks its next, of `--each`, when it has its answer. Bare and repaired are the
same server, asked by a key or a word that may, in turns: "ratio" is repaired over bare, over all
rounds, with its 95% interval (bootstrap over rounds). Processor seconds are those of the server and
of all that it started; they hardly depend on what else the machine does. What the plugin costs vLLM
beside a stock one is told by `plugin.py`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from care.data.example import Example
from care.data.small_world.suites import load
from care.defenses.repair.repair import Repair
from care.statistics.bootstrap import bootstrap_ratio

PROGRAM = "import sys; from care.interfaces.cli.app import main; sys.exit(main(sys.argv[1:]))"
CLIENTS = (1, 8, 64)
TOKENS = 24
KEY = "a-key-of-the-benchmark"


def bodies(count: int) -> list[dict[str, Any]]:
    """Harmless requests of the small world, half of them with a picture."""
    found = [e for name in ("benign", "benign-pictured") for e in load(name, "test", count)]
    return [body(found[n % 2 * count + n // 2]) for n in range(count)]


def body(example: Example) -> dict[str, Any]:
    """A request as OpenAI's API has it."""
    content: list[dict[str, Any]] = []
    for image in example.load_images():
        file = io.BytesIO()
        image.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": example.prompt})
    return {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS}


@contextmanager
def served(repair: Path, more: list[str]) -> Iterator[tuple[str, int]]:
    """A server of the embedded model under a repair; its address and its process."""
    env = os.environ | {"CARE_API_KEY": KEY, "CARE_BARE_API_KEY": KEY + "-bare"}
    asked = ["serve", "embedded", "--repair", str(repair), "--port", "0", "--max-waiting", "256"]
    asked += ["--requests-per-minute", "1000000", *more]
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *asked], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        url = ""
        for line in server.stderr:
            if not line.startswith("{"):
                raise SystemExit(line)
            told = json.loads(line)
            url = told.get("url", url)
            if told["event"] == "ready":
                break
        else:
            raise SystemExit("The server ended before it was ready.")
        # Its log is read on, or it would wait for room in the pipe.
        drain = ThreadPoolExecutor(1)
        drain.submit(server.stderr.read)
        yield url, server.pid
    finally:
        server.terminate()
        server.wait()


def processor_seconds(pid: int) -> float:
    """Of a process and all below it, so far; 0 where the system doesn't tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        below = [int(word) for file in tasks for word in file.read_text().split()]
    except OSError:
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(processor_seconds, below))


class Measured:
    """A server that is asked in one way."""

    def __init__(self, url: str, key: str, more: dict[str, Any], pid: int = 0) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=2 * max(CLIENTS))
        self.client = httpx.Client(base_url=url, headers=headers, timeout=600, limits=limits)
        model = self.client.get("/models").raise_for_status().json()["data"][0]["id"]
        self.more, self._pid = more | {"model": model}, pid

    def round(self, asked: list[dict[str, Any]], clients: int) -> dict[str, float]:
        """Seconds a request and processor milliseconds a token of so many requests."""
        spent, begun = processor_seconds(self._pid), time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            tokens = sum(pool.map(self.answer, asked))
        found = {"seconds a request": (time.perf_counter() - begun) / len(asked)}
        if self._pid:
            used = processor_seconds(self._pid) - spent
            found["processor ms a token"] = 1e3 * used / tokens
        return found

    def answer(self, asked: dict[str, Any]) -> int:
        """Tokens of an answer."""
        found = self.client.post("/chat/completions", json=asked | self.more).raise_for_status()
        return found.json()["usage"]["completion_tokens"]

    def first(self, asked: dict[str, Any]) -> float:
        """Seconds until the first piece of a stream, which is read to its end."""
        begun, first = time.perf_counter(), None
        told = asked | self.more | {"stream": True}
        with self.client.stream("POST", "/chat/completions", json=told) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if first is None and line.startswith("data: {"):
                    choices = json.loads(line[6:]).get("choices", ())
                    if any((choice["delta"].get("content") or "") for choice in choices):
                        first = time.perf_counter() - begun
        if first is None:
            raise SystemExit("A stream ended without a piece of an answer.")
        return first


def figures(ways: dict[str, Measured], given: argparse.Namespace) -> dict[str, Any]:
    """Of each number of clients, the ways in turns."""
    asked = bodies(max(64, *given.clients))
    found: dict[str, Any] = {}
    for way in ways.values():
        way.round(asked[:2], 2)  # caches are warm
    for clients in given.clients:
        some = list(islice(cycle(asked), given.each * clients))
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for number in range(given.rounds):
            for name in in_turn(ways, number):
                rounds[name].append(ways[name].round(some, clients))
        kinds = rounds["bare"][0]
        told = {kind: compared({n: [r[kind] for r in rows] for n, rows in rounds.items()})
                for kind in kinds}  # fmt: skip
        rates = {n: [1 / r["seconds a request"] for r in rows] for n, rows in rounds.items()}
        told["requests a second"] = {name: round(median(each), 2) for name, each in rates.items()}
        found[f"{clients} clients"] = told
        print(clients, json.dumps(told), flush=True)
    firsts: dict[str, list[float]] = {name: [] for name in ways}
    for number, one in enumerate(asked[: given.streams]):
        for name in in_turn(ways, number):
            firsts[name].append(1e3 * ways[name].first(one))
    found["first token, ms"] = compared(firsts)
    return found


def in_turn(ways: dict[str, Measured], number: int) -> list[str]:
    """The ways of a round; the one that begins changes."""
    return list(ways) if number % 2 else list(ways)[::-1]


def compared(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """Means of each way, and the ratio of the one that isn't bare to the one that is."""
    told: dict[str, Any] = {name: round(sum(r) / len(r), 4) for name, r in rounds.items()}
    (name,) = (name for name in rounds if name != "bare")
    ratio = bootstrap_ratio(rounds[name], rounds["bare"])
    return told | {"ratio": [round(each, 3) for each in (ratio.rate, ratio.low, ratio.high)]}


def main() -> None:
    parser = argparse.ArgumentParser(description="requests a second of care serve")
    parser.add_argument("--repair", type=Path, default=Path("runs/demo/repair"))
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--vllm-args", default="", help="as those of care serve")
    parser.add_argument("--url", help="a running server with a word for the bare model")
    parser.add_argument("--off", help="that word")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16, help="of which the first token is timed")
    given = parser.parse_args()
    told: dict[str, Any] = {"tokens": TOKENS, "rounds": given.rounds, "each": given.each}
    if given.url:
        bare = {"vllm_xargs": {"care_off": given.off}} if given.off else {}
        ways = {"bare": Measured(given.url, KEY, bare), "repaired": Measured(given.url, KEY, {})}
        print(json.dumps(told | {"upstream": figures(ways, given)}))
        return
    if not given.repair.is_dir():
        raise SystemExit(f"There is no repair in {given.repair}; run make demo, or pass --repair.")
    more = ["--engine", given.engine]
    more += ["--vllm-args", given.vllm_args] if given.vllm_args else []
    with tempfile.TemporaryDirectory() as folder:
        edits = Repair.load(given.repair).edits_only().save(Path(folder, "edits"))
        for name, repair in (("with monitors", given.repair), ("edits only", edits)):
            with served(repair, more) as (url, pid):
                ways = {
                    "bare": Measured(url, KEY + "-bare", {"care": {"repair": False}}, pid),
                    name: Measured(url, KEY, {}, pid),
                }
                told[name] = figures(ways, given)
    print(json.dumps(told | {"engine": given.engine}))


if __name__ == "__main__":
    main()
