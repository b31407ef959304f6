"""The suites that an evaluation tests: those that were named, or all of the small world.

A name is one that `care.load_suite` knows, or a .jsonl file; of the small world the test split is
tested. Goals that were also fitted on are the business of `leak_check`.
"""

from __future__ import annotations

from collections.abc import Sequence

from care.data.example import Suite, SuiteRole
from care.data.jsonl import ENDING
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
    return [*found, *harmless_suites(utility, "--utility", limit, seed)]


def attack_suites(names: Sequence[str], option: str, limit: int | None, seed: int) -> list[Suite]:
    """The suites that an option for attacks names; UsageError for one of another role."""
    found = [load_suite(name, role=_role(name, "attack"), limit=limit, seed=seed) for name in names]
    for suite in found:
        if suite.role != "attack":
            raise UsageError(
                f"{option} names {suite.name}, which is no attack suite but one of harmless "
                "requests; name it with --benign, --test or --utility."
            )
    return found


def harmless_suites(
    names: Sequence[str],
    option: str,
    limit: int | None,
    seed: int,
    role: SuiteRole | None = None,
    instead: str = "--suite",
) -> list[Suite]:
    """The suites that an option for harmless requests names; `role` is that of files.

    UsageError for an attack suite, which belongs to the option `instead`.
    """
    found = [load_suite(name, role=_role(name, role), limit=limit, seed=seed) for name in names]
    for suite in found:
        if suite.role == "attack":
            raise UsageError(
                f"{option} names {suite.name}, which is an attack suite; name it with {instead}."
            )
    return found


def _role(name: str, role: SuiteRole | None) -> SuiteRole | None:
    """The role that a file is read in; named suites have their own."""
    return role if name.endswith(ENDING) else None


def _small_world(model: str | None) -> list[str]:
    # The adversarial pictures were made for the embedded model.
    return [name for name in NAMES if model is None or name not in PGD]
