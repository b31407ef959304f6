"""A whole report with figures of a real one's magnitude, and parts of other ones.

`report.json` beside this file is a report without its `summary`, which the report computes: of a
model of 30 layers, with every part that a report may have and made-up figures that fit together.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

OUTCOMES = ("harmful", "refused", "degenerate", "safe")
N_EXAMPLES = 24
_STORED = Path(__file__).with_name("report.json").read_text(encoding="utf-8")


def report_tree() -> dict[str, Any]:
    """A copy of the stored report."""
    return json.loads(_STORED)


@pytest.fixture
def tree() -> dict[str, Any]:
    return report_tree()


def put(tree: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The same tree, changed at one path."""
    node: Any = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def wilson(k: int, n: int) -> dict[str, float]:
    """Wilson interval at 95 percent, computed here independently of the library."""
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"rate": p, "low": max(centre - half, 0.0), "high": min(centre + half, 1.0)}


def figures(effect: float, half: float) -> dict[str, float]:
    """An effect with its interval, and a tenth of it on benign prompts."""
    return {
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "benign_effect": 0.1 * effect,
        "selectivity": effect - 0.1 * effect,
        "selectivity_low": effect - 0.1 * effect - 1.2 * half,
    }


def estimate(rate: float, half: float = 0.1) -> dict[str, Any]:
    """A figure with its interval."""
    return {"rate": rate, "low": rate - half, "high": rate + half, "n": N_EXAMPLES}
