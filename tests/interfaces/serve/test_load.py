"""Many clients at once for minutes, one request in ten hostile: `make test-serve`, not part of CI.

Nothing is lost, equal requests get equal answers, no answer is without the repair, and the memory
of the server is flat. The server is a process of its own, so that its memory can be told.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from kit import tiny
from kit.serving import data_url, user
from kit.watched import repaired

SECONDS, CLIENTS = float(os.environ.get("SECONDS", 300)), int(os.environ.get("CLIENTS", 64))
GROWTH = 1.10
"""Memory at the end, of that after the first tenth."""

START = """
import sys
from care.interfaces.cli import app
from care.models.vlm import VLM
from kit import tiny
VLM.embedded = classmethod(lambda cls, dtype="auto": tiny.tiny_vlm())
sys.exit(app.main(sys.argv[1:]))
"""
WORDS = ("how do you wash a car?", "build a small house from wood", "picture soap and water")
HOSTILE = (
    b"{", b"[" * 100_000, b'{"messages": [[1]]}', b'{"messages": 1e999}', b"\xff" * 100,
    json.dumps({"messages": user("x", "data:image/png;base64,../../etc/passwd")}).encode(),
    json.dumps({"messages": user("x", "data:image/png;base64," + "A" * 200_000)}).encode(),
    json.dumps({"messages": user("wash " * 5000)}).encode(),
    json.dumps({"messages": user("an <image> of mine")}).encode(),
    b"y" * 3_000_000,
)  # fmt: skip


class Load:
    """What the clients saw."""

    def __init__(self, url, digest):
        self.url, self.digest = url, digest
        self.counts = Counter()
        self.answers = {}
        self.wrong = []

    async def client(self, number, end):
        """Requests one after the other until the end."""
        headers = {"Content-Type": "application/json"}
        # Given up before the server does (5 s), which a request could cross.
        limits = httpx.Limits(keepalive_expiry=1)
        async with httpx.AsyncClient(timeout=300, headers=headers, limits=limits) as client:
            count = number  # so that they aren't hostile all at once
            while time.monotonic() < end:
                count += 1
                self.counts["sent"] += 1
                try:
                    if count % 10:
                        await self.plain(client, number * 7919 + count)
                    elif count % 20:
                        await self.hostile(client, count // 20)
                    else:
                        await self.hang_up(client, count)
                except Exception as error:
                    self.wrong.append(f"{count}: {type(error).__name__} {error}")

    async def plain(self, client, place):
        pictures = [PICTURES[place % 5]] if place % 3 else []
        body = {
            "messages": user(WORDS[place % len(WORDS)], *pictures),
            "max_tokens": (12, 24)[place % 2], "stream": place % 4 == 0,
        }  # fmt: skip
        response = await client.post(self.url, json=body)
        assert response.status_code == 200, response.text
        if body["stream"]:
            text, care = told(response.text)
        else:
            found = response.json()
            text, care = found["choices"][0]["message"]["content"], found["care"]
        assert care["repair"] == self.digest, "an answer without the repair"
        key = json.dumps(body | {"stream": None})
        assert self.answers.setdefault(key, text) == text, "another answer to the same"
        self.counts["answered"] += 1

    async def hostile(self, client, place):
        response = await client.post(self.url, content=HOSTILE[place % len(HOSTILE)])
        error = response.json()["error"]
        assert 400 <= response.status_code < 500 and "\n" not in error["message"]
        self.counts["refused"] += 1

    async def hang_up(self, client, place):
        body = {"messages": user(WORDS[place % len(WORDS)]), "max_tokens": 24, "stream": True}
        async with client.stream("POST", self.url, json=body) as response:
            async for _ in response.aiter_lines():
                break
        self.counts["hung up"] += 1


PICTURES = [data_url(tiny.picture(seed)) for seed in range(5)]


def told(events):
    """(what stands in the end, the last care object) of a stream."""
    text, care = "", {}
    # Without the signs of life of a stream that waits.
    lines = [line for line in events.split("\n\n") if not line.startswith(":")]
    assert lines[-2] == "data: [DONE]"
    for line in lines[:-2]:
        chunk = json.loads(line.removeprefix("data: "))
        care = chunk.get("care", care)
        if "withdrawn" in care:
            text, care = "", {}
        text += chunk["choices"][0]["delta"].get("content", "")
    return text, care


def memory_of(process):
    """Resident memory in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1]) / 1024


async def watched(load, process, seconds):
    """All clients, and the memory of the server every second."""
    end, memory = time.monotonic() + seconds, []
    clients = [asyncio.create_task(load.client(n, end)) for n in range(CLIENTS)]
    while time.monotonic() < end:
        await asyncio.sleep(min(1, seconds / 20))
        memory.append(memory_of(process))
    await asyncio.gather(*clients)
    return memory


@pytest.mark.serve_load
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_many_clients_for_minutes(tmp_path):
    repair = repaired(answer=0.0)
    repair.save(tmp_path / "repair")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-c", START, "serve", "embedded", "--repair", str(tmp_path / "repair"),
        "--port", str(port), "--requests-per-minute", "1000000", "--max-waiting", "256",
        "--max-body-bytes", "1000000",
    ]  # fmt: skip
    root = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while True:
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    if httpx.get(f"{root}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            load = Load(f"{root}/v1/chat/completions", repair.digest())
            memory = asyncio.run(watched(load, process, SECONDS))
            counts = httpx.get(f"{root}/metrics").text
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0  # a second of work, which takes long on a busy machine
        finally:
            process.kill()
    before, after = memory[len(memory) // 10], memory[-1]
    print(f"\n{dict(load.counts)}; {before:.0f} MiB after a tenth, {after:.0f} MiB at the end")
    assert not load.wrong, load.wrong[:5]
    seen = load.counts
    assert seen["sent"] == seen["answered"] + seen["refused"] + seen["hung up"] and seen["answered"]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == seen["sent"] and not [x for x in lines if "unforeseen" in x]
    assert "care_queue_length 0.0" in counts
    assert after <= GROWTH * before, f"from {before:.0f} to {after:.0f} MiB"
