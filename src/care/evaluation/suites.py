"""The suites of an evaluation, by name: what is tested, and what repairs were fitted on.

A name is one that `care.load_suite` knows, or a .jsonl file. Of the small world the test split is
tested, and the fit split, at the lengths that `care repair` fits on, is what was fitted on. Leaks
between the two are in `evaluation_leaks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from care.data.example import Suite
from care.data.jsonl import load_suite
from care.errors import DataError, UsageError


def named_suite(name: str, limit: int | None, seed: int) -> Suite:
    """One suite by name or file, a sample of at most `limit` examples of it."""
    return load_suite(name, limit=limit, seed=seed)


def fitted_suite(name: str) -> Suite:
    """All of a suite that may have been fitted on; of the small world its fit split."""
    from care.data.small_world import suites as world

    if name in world.NAMES:
        from care.pipeline.splits import FIT_LENGTHS  # takes torch along, which files don't need

        return world.load(name, "fit", FIT_LENGTHS[name])
    return named_suite(name, None, 0)


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
    from care.data.small_world.suites import NAMES, PGD

    # The adversarial pictures were made for the embedded model.
    return [name for name in NAMES if model is None or name not in PGD]
