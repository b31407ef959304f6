"""Which examples of the suites that were named are fitted on, chosen by and tested.

    --attacks, --benign   by goal: half to fit on, a fifth to choose by, the rest to test
    --utility             by goal: three tenths to choose by, the rest to test
    --test                all to test

A goal lies where a digest of it falls, so where it lies doesn't depend on what else is named. Goals
that are nearly the same (`care.data.contamination`) lie together, where the first of them in the
alphabet falls; of harmless requests with pictures, which share their words, examples lie where
their suites keep them together. Where a malicious goal of --test is near one that would be fitted
on or chosen by, the job is refused, or the latter is left out.

Two files alone, as they could be passed before there were names, are split goal by goal. Not here:
the small world, whose splits are its own (`splits`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from care.data.contamination import Leak, content, leaks
from care.data.example import Example, Suite
from care.data.registry import REGISTRY, load_suite
from care.errors import DataError, UsageError
from care.evaluation.suites import attack_suites, harmless_suites
from care.pipeline.config import RepairJob, Split

Splits = Mapping[Split, Sequence[Suite]]

SHARES: Mapping[Split, float] = {"fit": 0.5, "validation": 0.7, "test": 1.0}
"""Up to which share of all goals a split goes, of suites that are fitted on."""

UTILITY_SHARES: Mapping[Split, float] = {"validation": 0.3, "test": 1.0}
"""The same of utility suites."""

SHOWN = 3
"""Pairs of leaking goals that are named."""

KeyOf = Callable[[Example], str]
"""By what an example lies in a split."""


@dataclass(frozen=True)
class NamedSuites:
    """The suites that a job names, whole."""

    attacks: tuple[Suite, ...] = ()
    """Attacks to split."""
    benign: tuple[Suite, ...] = ()
    """Harmless requests to split."""
    tested: tuple[Suite, ...] = ()
    """Suites to test alone."""
    utility: tuple[Suite, ...] = ()
    """Utility suites."""

    @classmethod
    def of(cls, job: RepairJob) -> Self:
        """Read them. Raises what `care.load_suite` raises, UsageError for a wrong role or for two
        suites of one name."""
        limit, seed = job.limit, job.run.seed
        found = cls(
            tuple(attack_suites(job.attacks, "--attacks", limit, seed)),
            tuple(_harmless(job, "benign")),
            tuple(load_suite(name, limit=limit, seed=seed) for name in job.test),
            tuple(_harmless(job, "utility")),
        )
        names = [suite.name for suite in found.all()]
        if not job.by_file and (twice := [name for name in names if names.count(name) > 1]):
            raise UsageError(
                f"Two of the suites are called {twice[0]}; name each once, or give a file another "
                "name."
            )
        return found

    def all(self) -> list[Suite]:
        """All of them."""
        return [*self.attacks, *self.benign, *self.tested, *self.utility]


def _harmless(job: RepairJob, option: Literal["benign", "utility"]) -> list[Suite]:
    role = "over_refusal" if option == "benign" else "utility"
    names, instead = getattr(job, option), "--attacks or --test"
    return harmless_suites(names, f"--{option}", job.limit, job.run.seed, role, instead)


def split_by_goal(named: NamedSuites, by_file: bool) -> dict[Split, list[Suite]]:
    """The suites to fit on and those of utility in their splits; `by_file`: each goal by itself.

    DataError where a split would have no attack, or no harmless request.
    """
    fitted = (*named.attacks, *named.benign)
    near = {} if by_file else near_goals((*fitted, *named.utility))
    found: dict[Split, list[Suite]] = {split: [] for split in get_args(Split)}
    for split in found:
        for part in (named.attacks, named.benign):
            kept = [s for suite in part for s in _kept(suite, split, SHARES, near, by_file)]
            if part and not kept:
                raise DataError(
                    f"{part[0].name} has no example for the {split} split: goals are split by "
                    "their digest, so a handful is too few; add examples with other goals"
                )
            found[split] += kept
        for suite in named.utility:
            found[split] += _kept(suite, split, UTILITY_SHARES, near, by_file)
    return found


def without_leaks(
    splits: Splits, tested: Sequence[Suite], leave_out: bool
) -> dict[Split, list[Suite]]:
    """The splits with the suites that are tested whole, and without what leaks from them.

    UsageError for malicious goals on both sides, unless they are to be left out, and where nothing
    would be left of a suite's role.
    """
    if not tested:
        return {split: list(splits[split]) for split in splits}
    used = [*splits["fit"], *splits["validation"]]
    found = leaks(_malicious(used), _malicious(tested))
    if found and not leave_out:
        raise _leaking(found)
    leaking = {leak.fitted for leak in found}
    return {
        "fit": _left(splits["fit"], leaking),
        "validation": _left(splits["validation"], leaking),
        "test": [*splits["test"], *tested],
    }


def near_goals(suites: Iterable[Suite]) -> dict[str, str]:
    """The goal, by its name in `_named`, at which each goal that has near ones lies."""
    first: dict[tuple[str, frozenset[str]], Example] = {}
    goals: dict[tuple[str, frozenset[str]], list[str]] = {}
    for suite in suites:
        for example in suite:
            if example.kind == "benign" and example.images:
                continue
            goal = example.goal or example.prompt
            key = (example.kind, content(goal))
            first.setdefault(key, example)
            goals.setdefault(key, []).append(goal)
    place = {f"{e.suite}/{e.id}": key for key, e in first.items()}
    leader = {key: key for key in first}

    def head(key: tuple[str, frozenset[str]]) -> tuple[str, frozenset[str]]:
        while leader[key] != key:
            key = leader[key]
        return key

    alone = list(first.values())
    for leak in leaks(alone, alone):
        leader[head(place[leak.fitted])] = head(place[leak.tested])
    groups: dict[tuple[str, frozenset[str]], list[str]] = {}
    for key, said in goals.items():
        groups.setdefault(head(key), []).extend(map(_named, said))
    return {name: min(names) for names in groups.values() for name in names}


def _kept(
    suite: Suite,
    split: Split,
    shares: Mapping[Split, float],
    near: Mapping[str, str],
    by_file: bool,
) -> list[Suite]:
    """The part of a suite that lies in a split, one suite for each name in it; none where there is
    no such part."""
    groups: dict[str, list[Example]] = {}
    for example in suite:
        name = _named(example.goal or example.prompt)
        key = name if by_file else _key(suite, example, near.get(name, name))
        if _split_of(key, shares) == split:
            groups.setdefault(example.suite or suite.name, []).append(example)
    return [
        replace(suite, name=name, examples=tuple(examples)) for name, examples in groups.items()
    ]


def _key(suite: Suite, example: Example, goal: str) -> str:
    """What an example lies by: its goal, or of harmless ones with pictures what it is one of."""
    if example.kind == "malicious" or not example.images:
        return goal
    card = REGISTRY.get(suite.name)
    return f"{suite.name}/{card.group(example.id) if card else example.id}"


def _named(goal: str) -> str:
    return goal.strip().lower()


def _split_of(key: str, shares: Mapping[Split, float]) -> Split:
    """The split that the digest of a key falls into."""
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 16**8
    return next(split for split, end in shares.items() if share < end)


def _malicious(suites: Iterable[Suite]) -> list[Example]:
    return [e for suite in suites for e in suite if e.kind == "malicious"]


def _leaking(found: Sequence[Leak]) -> UsageError:
    told = "; ".join(
        f"{leak.fitted} and {leak.tested}: {leak.tested_goal!r:.60}" for leak in found[:SHOWN]
    )
    return UsageError(
        f"Goals of --test would also be fitted on or chosen by (pairs of examples: {len(found)}, "
        f"such as {told}); leave them out there with --leaks leave-out, or name other suites."
    )


def _left(suites: Sequence[Suite], leaking: set[str]) -> list[Suite]:
    """The suites without examples that leak; UsageError where none of an attack's is left."""
    kept = [
        (suite, tuple(e for e in suite if f"{e.suite}/{e.id}" not in leaking)) for suite in suites
    ]
    attacked = any(suite.role == "attack" for suite in suites)
    if attacked and not any(part for suite, part in kept if suite.role == "attack"):
        raise UsageError(
            "Every attack to fit on or choose by has a goal that --test asks too; name other "
            "suites with --attacks."
        )
    return [replace(suite, examples=part) for suite, part in kept if part]
