"""Goals that a repair was fitted on and is tested on: what stops an evaluation.

Two ways to tell, which go together:

- an artefact holds digests of the goals that it was fitted on (`fitted_on.goals` in its manifest),
  and every repair that does is checked. Digests tell the same goals alone, in other words near ones
  pass; they don't hide a goal from somebody who guesses it.
- suites named with --fitted-on are compared goal by goal, near ones too
  (`care.data.contamination`). Only their malicious goals count, since near benign requests are too
  many.

Not here: the goals that a choice among candidates was validated on; artefacts don't hold them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from care.data.contamination import DIGITS, SCHEME, goal_digests, leaks
from care.data.example import Suite
from care.defenses.loading import load_defense
from care.errors import ArtefactError, UsageError
from care.evaluation.scores import RepairLeaks, SuiteLeak

SHOWN = 5
"""Most ids of leaking examples that are named."""

_DIGEST = re.compile(f"[0-9a-f]{{{DIGITS}}}")


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


def repair_leaks(
    repairs: Mapping[str, Path], suites: Sequence[Suite], allow: bool = False
) -> dict[str, RepairLeaks]:
    """What the artefacts themselves tell of leaks, by the repairs' names, for the manifest.

    Raises UsageError for leaks unless they are allowed, and what loading an artefact raises.
    """
    stated = {
        name: stated_goals(getattr(load_defense(path), "manifest", {}), path)
        for name, path in repairs.items()
    }
    tested: dict[str, dict[str, list[str]]] = {}
    if any(digests is not None for digests, _ in stated.values()):
        tested = {suite.name: goal_digests(suite) for suite in suites}
    sizes = {suite.name: len(suite) for suite in suites}
    report: dict[str, RepairLeaks] = {}
    for name, (digests, why) in stated.items():
        found = {} if digests is None else _found(digests, tested, sizes)
        report[name] = RepairLeaks("not checked" if digests is None else "same goals", why, found)
    leaking = [_said(name, suite, leak) for name, one in report.items()
               for suite, leak in one.found.items()]  # fmt: skip
    if leaking and not allow:
        raise UsageError(
            f"Goals that a repair was fitted on are also tested: {'; '.join(leaking)}. Leave these "
            "examples out, or go on with --allow-leaks."
        )
    return report


def stated_goals(
    manifest: Mapping[str, Any], path: str | Path = "the repair"
) -> tuple[frozenset[str] | None, str]:
    """The digests that an artefact's manifest states, or None and why there are none to use.

    Raises ArtefactError for digests that are malformed.
    """
    fitted_on = manifest.get("fitted_on")
    goals = fitted_on.get("goals") if isinstance(fitted_on, dict) else None
    if goals is None:
        return None, "its artefact doesn't say which goals it was fitted on"
    if not isinstance(goals, dict) or not isinstance(goals.get("scheme"), str):
        raise _malformed(path, goals)
    if goals["scheme"] != SCHEME:
        return None, f"its goals have digests of the scheme {goals['scheme']!r:.40}, not {SCHEME}"
    digests = goals.get("digests")
    if not isinstance(digests, list) or not all(
        isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests
    ):
        raise _malformed(path, digests)
    return frozenset(digests), ""


def _malformed(path: str | Path, what: object) -> ArtefactError:
    return ArtefactError(
        f"fitted_on.goals in the manifest of {path} must be a scheme and a list of digests of "
        f"{DIGITS} hexadecimal digits, got {what!r:.80}; fetch the artefact again or fit a new one"
    )


def _found(
    digests: frozenset[str], tested: Mapping[str, Mapping[str, list[str]]], sizes: Mapping[str, int]
) -> dict[str, SuiteLeak]:
    found = {}
    for suite, known in tested.items():
        ids = sorted(one for digest in digests & known.keys() for one in known[digest])
        if ids:
            found[suite] = SuiteLeak(len(ids), sizes[suite], tuple(ids[:SHOWN]))
    return found


def _said(name: str, suite: str, leak: SuiteLeak) -> str:
    more = ", …" if leak.examples > len(leak.ids) else ""
    ids = ", ".join(leak.ids)
    return f"{name} and {suite}, {leak.examples} of {leak.of} examples ({ids}{more})"
