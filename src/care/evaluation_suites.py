"""The suites of an evaluation, by name, and goals that were both fitted on and are tested.

A name is one that `care.load_suite` knows, or a .jsonl file. Only malicious goals count as leaks: a
repair that has seen a harmless request doesn't know an attack, and benign requests are much alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from care.errors import DataError, UsageError
from care.examples import Suite
from care.examples_file import load_suite
from care.leaks import leaks


def named_suite(name: str, limit: int | None, seed: int) -> Suite:
    """One suite by name or file, a sample of at most `limit` examples of it."""
    return load_suite(name, limit=limit, seed=seed)


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


def refuse_leaks(fit: Sequence[Suite], test: Sequence[Suite]) -> None:
    """UsageError if malicious goals of `fit` are tested, the same or nearly so."""
    fitted, tested = (
        [e for suite in side for e in suite if e.kind == "malicious"] for side in (fit, test)
    )
    if found := leaks(fitted, tested):
        first = "; ".join(
            f"{pair.fitted} and {pair.tested}: {pair.tested_goal!r:.60}" for pair in found[:3]
        )
        raise UsageError(
            f"Goals that were fitted on are also tested (pairs of examples: {len(found)}, such as "
            f"{first}); leave them out, or go on with --allow-leaks."
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
        "version": suite.version,
        "licence": suite.licence,
        "source": suite.source,
        "revision": suite.revision,
    }


def _small_world(model: str | None) -> list[str]:
    from care.embedded.suites import NAMES, PGD

    # The adversarial pictures were made for the embedded model.
    return [name for name in NAMES if model is None or name not in PGD]
