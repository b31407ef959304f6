"""What a job works on: its examples in three splits.

With no files of the user's own, the small world's suites are asked of any model; its adversarial
pictures are made for the embedded model and left out for others. The user's own examples are split
by goal, so that no goal is both fitted on and tested. A quick job works on a quarter of every suite
in every split. What a job does is in `pipeline`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from care.data.example import Example, Suite
from care.data.minimal_pairs import Pair
from care.data.small_world.suites import FIT_LENGTHS, SELECTION_LENGTHS, TEST_LENGTH
from care.diagnosis.activation_means import spread
from care.errors import DataError
from care.pipeline.config import QUICK, RepairJob

Split = Literal["fit", "validation", "test"]

SAMPLE = 6
"""One in so many of the small world's examples to fit on is asked if only a diagnosis is wanted."""

SAMPLED_BENIGN = 24
"""Harmless validation requests of a suite that it is then asked of; attacks are asked whole."""


def suites_of(job: RepairJob, split: Split) -> list[Suite]:
    """The job's suites in one split, attacks first."""
    if job.attacks is None:
        return _small_world(job, split)
    own = [part for suite in own_files(job) for part in _own(suite, split)]
    if not job.quick:
        return own
    kept = [spread(suite.examples, math.ceil(len(suite) / QUICK)) for suite in own]
    return [replace(suite, examples=tuple(part)) for suite, part in zip(own, kept, strict=True)]


def check_files(job: RepairJob) -> None:
    """Read the user's own files, so that what is wrong with them shows before a model is loaded.

    Raises what `suites_of` does.
    """
    for suite in own_files(job):
        for split in get_args(Split):
            _own(suite, split)


def own_files(job: RepairJob) -> list[Suite]:
    """The user's own attacks and benign requests, whole; none where the small world is asked."""
    from care.data.jsonl import read_suite

    if job.attacks is None or job.benign is None:
        return []
    return [read_suite(job.attacks, "attack"), read_suite(job.benign, "over_refusal")]


def _small_world(job: RepairJob, split: Split) -> list[Suite]:
    from care.data.small_world import suites

    made = []
    for name in suites.NAMES:
        if job.model.name is not None and name in suites.PGD:
            continue
        if split == "test":
            length = job.test_length
        elif split == "validation":
            length = SELECTION_LENGTHS[suites.role(name)]
            length = min(length, length * job.test_length // TEST_LENGTH) or 1
        else:
            length = FIT_LENGTHS[name]
        if job.quick:
            length = math.ceil(length / QUICK)
        made.append(suites.load(name, split, length))
    return made


def pairs_of(job: RepairJob, n: int = 48) -> list[Pair]:
    """At most `n` pairs of each of two kinds from the small world, on goals to fit on.

    First pairs that differ in the picture: of the embedded model the same request beside an
    adversarial and a plain one, of others a malicious and a harmless goal in the picture. Then
    pairs that differ in the text: harmful and harmless twins. None for the user's own examples.
    """
    if job.attacks is not None:
        return []
    from care.data.small_world import minimal_pairs as twins
    from care.data.small_world import suites

    attack, benign, kind = (
        (suites.PGD[0], "beside-image", "adversarial pictures")
        if job.model.name is None
        else ("pictured-goal", "benign-pictured", "harmful pictures")
    )
    found = (suites.load(name, "fit", n) for name in (attack, benign))
    pictured = [Pair(one, other, kind) for one, other in zip(*found, strict=True)]
    return pictured + twins.load("fit", n)


def _own(suite: Suite, split: Split) -> list[Suite]:
    """The user's suite, one suite per name in the file, kept to one split by goal."""
    groups: dict[str, list[Example]] = {}
    for example in suite:
        if _split_of(example.goal or example.prompt) == split:
            groups.setdefault(example.suite or suite.name, []).append(example)
    if not groups:
        raise DataError(
            f"{suite.name} has no example for the {split} split: goals are split by their digest, "
            "so a handful is too few; add examples with other goals"
        )
    return [
        Suite(name=name, role=suite.role, examples=tuple(found), source=suite.source)
        for name, found in groups.items()
    ]


def _split_of(goal: str) -> Split:
    """Half of all goals to fit on, a fifth for validation, the rest for test; by digest."""
    share = int(hashlib.sha256(goal.strip().lower().encode()).hexdigest()[:8], 16) / 16**8
    return "fit" if share < 0.5 else "validation" if share < 0.7 else "test"


def split_examples(suites: Sequence[Suite], role: Callable[[Suite], bool]) -> list[Example]:
    """All examples of the suites for which `role` holds."""
    return [example for suite in suites if role(suite) for example in suite]


def sampled(suite: Suite, split: str) -> Suite:
    """What a diagnosis alone asks of a suite."""
    if split == "fit":
        return suite.head(math.ceil(len(suite) / SAMPLE))
    return suite if suite.role == "attack" else suite.head(SAMPLED_BENIGN)
