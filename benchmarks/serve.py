"""Requests a second and time to the first token: bare, under edits, with monitors (`care serve`).

    python benchmarks/serve.py --repair runs/demo/repair      # transformers, the embedded model
    python benchmarks/serve.py --url URL --off WORD           # a running vLLM: bare, and repaired

One server at a time, the same harmless requests (half of them beside a picture) at 1, 8 and 64
clients, each of which asks its next when it has its answer. Bare and repaired are the same server,
asked by a key or a word that may, so that both are measured in turns. The last line is one JSON
object.
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
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from care.data.example import Example
from care.data.small_world.suites import load
from care.defenses.repair.repair import Repair

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
def served(repair: Path) -> Iterator[str]:
    """A server of the embedded model under a repair; its address."""
    env = os.environ | {"CARE_API_KEY": KEY, "CARE_BARE_API_KEY": KEY + "-bare"}
    asked = ["serve", "embedded", "--repair", str(repair), "--port", "0", "--max-waiting", "256"]
    more = ["--requests-per-minute", "1000000"]
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *asked, *more], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        url = ""
        for line in server.stderr:
            told = json.loads(line)
            url = told.get("url", url)
            if told.get("event") == "ready":
                break
        else:
            raise SystemExit("The server ended before it was ready.")
        # Its log is read on, or it would wait for room in the pipe.
        drain = ThreadPoolExecutor(1)
        drain.submit(server.stderr.read)
        yield url
    finally:
        server.terminate()
        server.wait()


class Measured:
    """A server that is asked in one way."""

    def __init__(self, url: str, key: str, more: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=2 * max(CLIENTS))
        self.client = httpx.Client(base_url=url, headers=headers, timeout=600, limits=limits)
        model = self.client.get("/models").raise_for_status().json()["data"][0]["id"]
        self.more = more | {"model": model}

    def second_rate(self, asked: list[dict[str, Any]], clients: int) -> float:
        """Requests a second."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self.answer, asked))
        return len(asked) / (time.perf_counter() - begun)

    def answer(self, asked: dict[str, Any]) -> None:
        self.client.post("/chat/completions", json=asked | self.more).raise_for_status()

    def first(self, asked: dict[str, Any]) -> float:
        """Seconds until the first piece of a stream."""
        begun = time.perf_counter()
        told = asked | self.more | {"stream": True}
        with self.client.stream("POST", "/chat/completions", json=told) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:]).get("choices", ())
                    if any((choice["delta"].get("content") or "") for choice in choices):
                        return time.perf_counter() - begun
        raise SystemExit("A stream ended without a piece of an answer.")


def figures(ways: dict[str, Measured], requests: int, rounds: int) -> dict[str, Any]:
    """Medians of rounds, the ways in turns."""
    asked = bodies(requests)
    found: dict[str, Any] = {}
    for way in ways.values():
        way.second_rate(asked[:8], 8)  # caches are warm
    for clients in CLIENTS:
        some = asked[: max(16, requests if clients > 1 else requests // 4)]
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                rates[name].append(way.second_rate(some, clients))
        found[f"{clients} clients, requests/s"] = {
            name: round(median(each), 2) for name, each in rates.items()
        }
    firsts: dict[str, list[float]] = {name: [] for name in ways}
    for one in asked[:16]:
        for name, way in ways.items():
            firsts[name].append(way.first(one))
    found["first token, ms"] = {name: round(1e3 * median(t)) for name, t in firsts.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repair", type=Path, default=Path("runs/demo/repair"))
    parser.add_argument("--url", help="a running server with a word for the bare model")
    parser.add_argument("--off", help="that word")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    told: dict[str, Any] = {"tokens": TOKENS, "requests": given.requests, "rounds": given.rounds}
    if given.url:
        bare = {"vllm_xargs": {"care_off": given.off}} if given.off else {}
        ways = {"bare": Measured(given.url, KEY, bare), "repaired": Measured(given.url, KEY, {})}
        told["upstream"] = figures(ways, given.requests, given.rounds)
        print(json.dumps(told))
        return
    if not given.repair.is_dir():
        raise SystemExit(f"There is no repair in {given.repair}; run make demo, or pass --repair.")
    with tempfile.TemporaryDirectory() as folder:
        edits = Repair.load(given.repair).edits_only().save(Path(folder, "edits"))
        for name, repair in (("edits only", edits), ("with monitors", given.repair)):
            with served(repair) as url:
                ways = {
                    "bare": Measured(url, KEY + "-bare", {"care": {"repair": False}}),
                    name: Measured(url, KEY, {}),
                }
                told[name] = figures(ways, given.requests, given.rounds)
            print(name, json.dumps(told[name]))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
