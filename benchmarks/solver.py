"""The low-rank generalized eigensolver against `scipy.linalg.eigh(Cm, Cb)` in one process.

D = 4096 with 400 malicious and 400 benign rows (n = 800) of a decaying spectrum, four planted
malicious directions, Ledoit–Wolf shrinkage. Both sides solve the same regularised problem, all
positive eigenvalues with their vectors. scipy starts from finished (D, D) matrices, whose forming
isn't counted; ours starts from the centred rows and is timed as the median of `--repeats` calls.
Both get the same number of BLAS threads, one by default, so that the ratio says nothing about
cores. The error is over all 400 positive eigenvalues.

    python benchmarks/solver.py            # a minute or two, about 1.5 GiB
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from care.eigen import generalized_eigh
from care.moments import Moments, ledoit_wolf


def make_rows(width: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(malicious about the benign mean, benign about its mean), each (n, width) float64."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, width + 1) ** -0.5
    malicious, benign = (rng.standard_normal((n, width)) * scale for _ in range(2))
    planted, _ = np.linalg.qr(rng.standard_normal((width, 4)))
    malicious += (1.0 + rng.standard_normal((n, 4))) @ planted.T
    centre = benign.mean(axis=0)
    return malicious - centre, benign - centre


def timed_low_rank(
    malicious: np.ndarray,
    benign: np.ndarray,
    ridge: float,
    weight: float,
    repeats: int,
    k: int | None = None,
) -> tuple[float, np.ndarray]:
    """(median seconds, eigenvalues); the first call, which warms caches up, is dropped."""
    seconds: list[float] = []
    values = np.empty(0)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        values, _ = generalized_eigh(malicious, benign, ridge, weight=weight, k=k)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), values


def timed_scipy(
    malicious: np.ndarray, benign: np.ndarray, ridge: float, weight: float
) -> tuple[float, np.ndarray]:
    """(seconds of the call alone, eigenvalues, largest first)."""
    c_malicious = malicious.T @ malicious / len(malicious)
    c_benign = benign.T @ benign * (weight / len(benign))
    c_benign[np.diag_indices(len(c_benign))] += ridge
    start = time.perf_counter()
    values, _ = eigh(c_malicious, c_benign)
    return time.perf_counter() - start, values[::-1]


def measure(width: int, rows: int, repeats: int) -> dict[str, float | int]:
    """All figures for `rows` malicious and `rows` benign rows of width D."""
    malicious, benign = make_rows(width, rows)
    spread = Moments(width).fit(benign).spread()
    rho = max(ledoit_wolf(spread), 1e-3)
    ridge, weight = rho * spread.trace / width, 1.0 - rho
    fast, values = timed_low_rank(malicious, benign, ridge, weight, repeats)
    fastest, _ = timed_low_rank(malicious, benign, ridge, weight, repeats, k=16)
    print(f"low rank: {fast:.3f} s, 16 vectors {fastest:.3f} s; scipy ...", flush=True)
    slow, reference = timed_scipy(malicious, benign, ridge, weight)
    return {
        "ratio_vs_scipy": round(slow / fast, 1),
        "ratio_vs_scipy_16_vectors": round(slow / fastest, 1),
        "eigenvalue_rel_error": float(np.abs(values / reference[: len(values)] - 1.0).max()),
        "seconds": fast,
        "seconds_16_vectors": fastest,
        "seconds_scipy": slow,
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
