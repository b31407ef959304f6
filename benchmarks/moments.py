"""Memory of gathering moments and fitting a subspace, from 1 000 to 100 000 samples.

Rows (D = 576) are made in batches and streamed into the moments of two classes with a row limit of
D, then a subspace of rank 8 is fitted. Peaks are of numpy's and Python's own allocations
(tracemalloc), counted from before the first batch; the process's peak RSS is given too. "Flat"
means that the last peak is close to the first.

    python benchmarks/moments.py
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
import tracemalloc

import numpy as np

from care.defenses.repair.subspace import SubspaceConfig, fit_subspace
from care.statistics.moments import Moments

MIB = 2**20


def gather(width: int, samples: int, batch: int, shift: float, seed: int) -> Moments:
    """Moments of `samples` rows streamed in batches."""
    rng = np.random.default_rng(seed)
    moments = Moments(width, max_rows=width)
    for start in range(0, samples, batch):
        rows = rng.standard_normal((min(batch, samples - start), width), dtype=np.float32)
        rows[:, 0] += shift
        moments.partial_fit(rows)
    return moments


def peak_of_fit(width: int, samples: int, batch: int) -> tuple[float, float]:
    """(peak MiB above the start, seconds) of gathering two classes and fitting."""
    gc.collect()
    tracemalloc.start()
    start = time.perf_counter()
    malicious = gather(width, samples, batch, shift=2.0, seed=0)
    benign = gather(width, samples, batch, shift=0.0, seed=1)
    fit_subspace(malicious, benign, SubspaceConfig(rank=8))
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    return peak, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="memory of gathering and fitting")
    parser.add_argument("--width", type=int, default=576, help="D")
    parser.add_argument("--batch", type=int, default=256, help="rows in a batch")
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    arguments = parser.parse_args()
    peaks: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for samples in arguments.samples:
        peak, took = peak_of_fit(arguments.width, samples, arguments.batch)
        peaks[str(samples)], seconds[str(samples)] = round(peak, 2), round(took, 2)
        print(f"{samples:>8} samples a class: peak {peak:.1f} MiB, {took:.1f} s", flush=True)
    first, last = (peaks[str(arguments.samples[i])] for i in (0, -1))
    print(
        json.dumps(
            {
                "growth": round(last / first, 3),
                "peak_mib": peaks,
                "seconds": seconds,
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "width": arguments.width,
            }
        )
    )


if __name__ == "__main__":
    main()
