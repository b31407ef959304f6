"""Published suites by name: attacks, over-refusal and utility.

Nothing of them is shipped: a suite is read from a local copy or fetched from its source at a pinned
revision. One module for each benchmark or family; `REGISTRY` holds them all in one order, attacks
first. Use `care.load_suite`, which also knows the small world's suites and files of one's own.
"""

from __future__ import annotations

import difflib

from care.data.benchmark import Benchmark
from care.data.benchmarks import (
    advbench,
    behaviours,
    choices,
    figstep,
    jailbreakv,
    mm_safetybench,
    mm_vet,
    over_refusal,
    toxicity,
    vl_safety,
    yes_no,
)
from care.errors import UsageError

__all__ = ["REGISTRY", "Benchmark", "find"]

_MODULES = (
    jailbreakv,
    mm_safetybench,
    figstep,
    advbench,
    behaviours,
    vl_safety,
    toxicity,
    over_refusal,
    choices,
    mm_vet,
    yes_no,
)

_ROLES = ("attack", "over_refusal", "utility")

REGISTRY: dict[str, Benchmark] = {
    found.name: found
    for found in sorted(
        (benchmark for module in _MODULES for benchmark in module.BENCHMARKS),
        key=lambda benchmark: _ROLES.index(benchmark.role),
    )
}
"""Every published suite by its name."""


def find(name: str) -> Benchmark:
    """The suite of that name; UsageError with the nearest names if there is none."""
    if name in REGISTRY:
        return REGISTRY[name]
    from care.data.small_world.suites import NAMES

    near = difflib.get_close_matches(name, [*REGISTRY, *NAMES], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"There is no suite {name!r}; {hint}`care suites list` shows their names, and a file of "
        "your own ends in .jsonl."
    )
