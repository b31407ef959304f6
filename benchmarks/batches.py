"""Peak memory of answering, by length of the prompts, with and without a bound of their tokens.

The embedded model reads 64 requests at once and answers in a few tokens, as they are and after 4,
16 and 64 invented turns (`care.attacks.many_shot`): as it does by itself (`care.models.memory`),
and with the bound lifted. Each measurement is a process of its own; memory is what its peak RSS
grows by while it answers. "growth" is that of the longest prompts over that of the shortest.

    python benchmarks/batches.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import care
from care.attacks.many_shot import after
from care.models import memory

MIB = 2**10
"""Of RSS, which is told in KiB."""


def measured(shots: int, count: int, bounded: bool) -> dict[str, float]:
    """What one process grows by, in MiB, while it answers, and how long that takes."""
    vlm, examples = care.VLM.embedded(), list(care.load_suite("direct"))
    asked = [after(shots, e) if shots else e for e in (examples * count)[:count]]
    vlm.generate(examples[:1], max_new_tokens=1)
    if not bounded:
        memory.PADDED_TOKENS = sys.maxsize
    before, start = peak(), time.perf_counter()
    vlm.generate(vlm.prefill(asked, batch_size=count), max_new_tokens=4)
    tokens = max(vlm.lengths(asked))
    return {"mib": peak() - before, "seconds": time.perf_counter() - start, "tokens": tokens}


def peak() -> float:
    """Peak RSS of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def in_a_process(shots: int, count: int, bounded: bool) -> dict[str, float]:
    """`measured` in a process of its own."""
    told = json.dumps([shots, count, bounded])
    said = subprocess.run(
        [sys.executable, __file__, "--one", told], capture_output=True, text=True, check=True
    )
    return json.loads(said.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory of answering long prompts")
    parser.add_argument("--examples", type=int, default=64, help="asked at once")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4, 16, 64])
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(*arguments.one)))
        return
    found: dict[str, dict[str, dict[str, float]]] = {"bounded": {}, "unbounded": {}}
    for shots in arguments.shots:
        for name, rows in found.items():
            one = rows[str(shots)] = in_a_process(shots, arguments.examples, name == "bounded")
            print(
                f"{name:>9}, {shots:>2} turns of {one['tokens']:.0f} tokens in all: "
                f"{one['mib']:.0f} MiB, {one['seconds']:.0f} s",
                flush=True,
            )
    first, last = (str(arguments.shots[place]) for place in (0, -1))
    growth = {
        name: round(rows[last]["mib"] / rows[first]["mib"], 2) for name, rows in found.items()
    }
    print(json.dumps({"growth": growth, **found}))


if __name__ == "__main__":
    main()
