"""The suites that an evaluation tests: those that were named, or all of the small world.

A name is one that `care.load_suite` knows, or a .jsonl file; of the small world the test split is
tested. Goals that were also fitted on are the business of `leak_check`.
"""

from __future__ import annotations

from collections.abc import Sequence

from care.data.example import Suite
from care.data.registry import load_suite
from care.data.small_world.suites import NAMES, PGD
from care.errors import UsageError


def chosen_suites(
    suites: Sequence[str],
    utility: Sequence[str],
    model: str | None,
    limit: int | None,
    seed: int,
) -> list[Suite]:
    """The named suites, attacks first; with none named, all of the small world.

    Raises UsageError for an attack suite among `utility`.
    """
    if not suites and not utility:
        return [load_suite(name, limit=limit, seed=seed) for name in _small_world(model)]
    found = [load_suite(name, limit=limit, seed=seed) for name in suites]
    useful = [load_suite(name, limit=limit, seed=seed) for name in utility]
    for suite in useful:
        if suite.role == "attack":
            raise UsageError(
                f"--utility names {suite.name}, which is an attack suite; name it with --suite."
            )
    return [*found, *useful]


def _small_world(model: str | None) -> list[str]:
    # The adversarial pictures were made for the embedded model.
    return [name for name in NAMES if model is None or name not in PGD]
