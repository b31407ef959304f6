"""The low-rank generalized eigensolver against `scipy.linalg.eigh(Cm, Cb)` in one process.

D = 4096 with 400 malicious and 400 benign rows (n = 800) of a decaying spectrum, four planted
malicious directions, Ledoit–Wolf shrinkage. Both sides solve the same regularised problem, all
positive eigenvalues with their vectors. scipy starts from finished (D, D) matrices, whose forming
isn't counted; ours starts from the centred rows and is timed as the median of `--repeats` calls.
Both get the same number of BLAS threads, one by default, so that the ratio says nothing about
cores. Ratios are of wall time; `ratio_cpu` is of CPU time, for a machine that isn't idle. The error
is over all 400 positive eigenvalues.

    python benchmarks/solver.py            # a minute or two, about 1.5 GiB
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from care.defenses.repair.eigensolver import generalized_eigh
from care.statistics.moments import Moments, ledoit_wolf


def make_rows(width: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(malicious about the benign mean, benign about its mean), each (n, width) float64."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, width + 1) ** -0.5
    malicious, benign = (rng.standard_normal((n, width)) * scale for _ in range(2))
    planted, _ = np.linalg.qr(rng.standard_normal((width, 4)))
    malicious += (1.0 + rng.standard_normal((n, 4))) @ planted.T
    centre = benign.mean(axis=0)
    return malicious - centre, benign - centre


class Seconds(NamedTuple):
    """What a call took."""

    wall: float
    cpu: float


def timed(call: Callable[[], np.ndarray]) -> tuple[Seconds, np.ndarray]:
    """(seconds, result) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu), result


def median_timed(call: Callable[[], np.ndarray], repeats: int) -> tuple[Seconds, np.ndarray]:
    """Medians over `repeats` calls after one that warms caches up, and the last result."""
    result = call()
    seconds: list[Seconds] = []
    for _ in range(repeats):
        took, result = timed(call)
        seconds.append(took)
    return Seconds(*(statistics.median(column) for column in zip(*seconds, strict=True))), result


def measure(width: int, rows: int, repeats: int) -> dict[str, float | int]:
    """All figures for `rows` malicious and `rows` benign rows of width D."""
    a, b = make_rows(width, rows)
    spread = Moments(width).fit(b).spread()
    rho = max(ledoit_wolf(spread), 1e-3)
    ridge, weight = rho * spread.trace / width, 1.0 - rho
    fast, values = median_timed(lambda: generalized_eigh(a, b, ridge, weight=weight)[0], repeats)
    few, _ = median_timed(lambda: generalized_eigh(a, b, ridge, weight=weight, k=16)[0], repeats)
    print(f"low rank: {fast.wall:.3f} s, 16 vectors {few.wall:.3f} s; scipy ...", flush=True)
    c_malicious = a.T @ a / len(a)
    c_benign = b.T @ b * (weight / len(b))
    c_benign[np.diag_indices(width)] += ridge
    slow, ascending = timed(lambda: eigh(c_malicious, c_benign)[0])
    reference = ascending[::-1][: len(values)]
    return {
        "ratio_vs_scipy": round(slow.wall / fast.wall, 1),
        "eigenvalue_rel_error": float(np.abs(values / reference - 1.0).max()),
        "ratio_cpu": round(slow.cpu / fast.cpu, 1),
        "ratio_16_vectors": round(slow.wall / few.wall, 1),
        "seconds": fast.wall,
        "seconds_16_vectors": few.wall,
        "seconds_scipy": slow.wall,
        "width": width,
        "n": 2 * rows,
        "eigenvalues_compared": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="low-rank eigensolver against scipy")
    parser.add_argument("--width", type=int, default=4096, help="D")
    parser.add_argument("--rows", type=int, default=400, help="rows of each class")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of the fast solver")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads of both solvers")
    arguments = parser.parse_args()
    with threadpool_limits(arguments.threads):
        result = measure(arguments.width, arguments.rows, arguments.repeats)
    print(json.dumps(result | {"threads": arguments.threads}))


if __name__ == "__main__":
    main()
