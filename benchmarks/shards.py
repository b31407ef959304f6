"""How much sooner two workers of one thread are done than one (embedded model).

    speedup = seconds of one process / seconds of the slower of two shards

Answers and judgements alone, as the runs' manifests tell them, and beside it the whole commands
with the loading of the model, which every worker does. Both in turns, `--rounds` times; the median
of the ratios. The rows of both have to be equal. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from care.runs.merging import merge
from care.runs.rows import Rows
from care.runs.shards import Shard

PROGRAM = "import sys; from care.interfaces.cli.app import main; sys.exit(main(sys.argv[1:]))"


def run(out: Path, asked: list[str], count: int) -> tuple[float, float]:
    """Seconds of the answers of the slowest of so many processes, and of all until they end."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, "evaluate", *asked, "--out", str(out)]
    shards = [Shard(number + 1, count) for number in range(count)] if count > 1 else []
    told = [["--shard", str(shard)] for shard in shards] or [[]]
    begun = perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([*command, *more], env=env, **quiet) for more in told]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"A process failed: {' '.join(command)}")
    whole = perf_counter() - begun
    folders = [shard.folder(out) for shard in shards] or [out]
    return max(map(answers, folders)), whole


def answers(folder: Path) -> float:
    """Seconds of the stage in which a run has answered."""
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    return next(stage["seconds"] for stage in stages if stage["name"] == "evaluation")


def rows(out: Path) -> dict[str, object]:
    """The judged answers of a run, by key."""
    return {row["key"]: row for row in Rows(out / "rows.jsonl").all()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=60, help="examples of each suite")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asked = ["--limit", str(given.limit), "--batch-size", "16"]
    ratios, wholes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            one, two = Path(folder, f"one-{number}"), Path(folder, f"two-{number}")
            alone, split = run(one, asked, 1), run(two, asked, 2)
            merge(two)
            assert rows(one) == rows(two)
            ratios.append(alone[0] / split[0])
            wholes.append(alone[1] / split[1])
            print(f"answers {alone[0]:.1f} s, in two {split[0]:.1f} s")
        count = len(rows(one))
    told = {
        "cores": os.cpu_count(),
        "answers": count,
        "speedup": round(median(ratios), 3),
        "with_loading": round(median(wholes), 3),
        "rounds": given.rounds,
        "aim": 1.8,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
