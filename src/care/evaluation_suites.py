"""The suites of an evaluation, by name, and goals that were both fitted on and are tested.

A name is one that `care.load_suite` knows, or a .jsonl file. Goals are compared without case and
spacing; near duplicates aren't found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from care.errors import DataError, UsageError
from care.examples import Suite
from care.examples_file import load_suite
from care.scorecard import goal_of


def named_suite(name: str, limit: int | None, seed: int) -> Suite:
    """One suite by name or file, at most `limit` examples of it."""
    suite = load_suite(name)
    return suite if limit is None else suite.head(limit)


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
        return [named_suite(name, limit, seed) for name in _small_world(model)]
    found = [named_suite(name, limit, seed) for name in suites]
    useful = [named_suite(name, limit, seed) for name in utility]
    for suite in useful:
        if suite.role == "attack":
            raise UsageError(
                f"--utility names {suite.name}, which is an attack suite; name it with --suite."
            )
    return [*found, *useful]


def leaks(fit: Sequence[Suite], test: Sequence[Suite]) -> list[tuple[str, str, str]]:
    """Goals that were fitted on and are tested: (suite fitted on, test suite, goal)."""
    fitted = {_goal(example): suite.name for suite in fit for example in suite}
    pairs = [
        (fitted[_goal(example)], suite.name, _goal(example))
        for suite in test
        for example in suite
        if _goal(example) in fitted
    ]
    return list(dict.fromkeys(pairs))


def refuse_leaks(fit: Sequence[Suite], test: Sequence[Suite]) -> None:
    """UsageError if goals of `fit` are tested."""
    if found := leaks(fit, test):
        first = "; ".join(f"{a} and {b}: {goal!r:.60}" for a, b, goal in found[:3])
        raise UsageError(
            f"{len(found)} goals that were fitted on are also tested ({first}); leave them out, or "
            "go on with --allow-leaks."
        )


def suite_facts(suite: Suite) -> dict[str, Any]:
    """Size, provenance and SHA-256 of a suite, for the manifest."""
    try:
        digest = suite.digest()
    except DataError:
        digest = None  # a picture can't be read; its example becomes a row with an error
    return {
        "n": len(suite),
        "role": suite.role,
        "digest": digest,
        "licence": suite.licence,
        "source": suite.source,
        "revision": suite.revision,
    }


def _small_world(model: str | None) -> list[str]:
    from care.embedded.suites import NAMES, PGD

    # The adversarial pictures were made for the embedded model.
    return [name for name in NAMES if model is None or name not in PGD]


def _goal(example: Any) -> str:
    return goal_of({"goal": example.goal, "prompt": example.prompt})
