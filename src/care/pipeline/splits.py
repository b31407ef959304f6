"""What a job works on: its examples in three splits.

With no suites named, the small world's are asked of any model; its adversarial pictures are made
for the embedded model and left out for others. Named suites and files are split by goal, so that no
goal is both fitted on and tested (`split_plan`). A quick job works on a quarter of every suite in
every split. What a job does is in `workflow`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import get_args

from care.data.digests import suite_digest
from care.data.example import Example, Suite
from care.data.minimal_pairs import Pair
from care.data.registry import REGISTRY
from care.data.small_world.suites import FIT_LENGTHS, SELECTION_LENGTHS, TEST_LENGTH
from care.diagnosis.activation_means import spread
from care.pipeline.config import RepairJob
from care.pipeline.split_plan import NamedSuites, Split, split_by_goal, without_leaks

SAMPLE = 6
"""One in so many of the small world's examples to fit on is asked if only a diagnosis is wanted."""

SAMPLED_BENIGN = 24
"""Harmless validation requests of a suite that it is then asked of; attacks are asked whole."""


class Splits:
    """The suites of a job in all splits: read and split once, when somebody asks."""

    def __init__(self, job: RepairJob) -> None:
        self.job = job

    @cached_property
    def named(self) -> NamedSuites:
        """Those that it names, whole."""
        return NamedSuites.of(self.job)

    @cached_property
    def plan(self) -> dict[Split, list[Suite]]:
        """`plan_of` the job."""
        return plan_of(self.job, self.named)

    def suites(self, split: Split) -> list[Suite]:
        """Those of one split, attacks first; of the small world no other split is made."""
        return self.plan[split] if self.job.names_suites else _small_world(self.job, split)


def plan_of(
    job: RepairJob, named: NamedSuites | None = None, small_world: bool = True
) -> dict[Split, list[Suite]]:
    """The job's suites in all splits, attacks to fit on first.

    `named` are those that it names, if they are read already; without attacks among them it is
    fitted on the `small_world`, if that is wanted.

    Raises UsageError and DataError for suites that can't be had or split, or that leak.
    """
    named = NamedSuites.of(job) if named is None else named
    found = split_by_goal(named, job.by_file)
    if small_world and not job.attacks:
        for split in get_args(Split):
            found[split] = [*_small_world(job, split), *found[split]]
    found = without_leaks(found, named.tested, job.leaks == "leave-out")
    if not job.quick:
        return found
    return {split: [_quickly(suite, job, split) for suite in found[split]] for split in found}


def _quickly(suite: Suite, job: RepairJob, split: Split) -> Suite:
    """A part of a named suite; the small world's are made that short."""
    if not job.attacks and suite.name in FIT_LENGTHS:
        return suite
    length = math.ceil(len(suite) / job.one_in(split))
    return replace(suite, examples=tuple(spread(suite.examples, length)))


def suites_of(job: RepairJob, split: Split) -> list[Suite]:
    """The job's suites in one split, attacks first."""
    return Splits(job).suites(split)


def digests_of(job: RepairJob, named: NamedSuites) -> dict[str, str]:
    """What the suites are that a job names, whole: a file's digest, a published one's revision.

    A split of a file is looked at only when it is due.
    """
    if job.by_file and not (job.test or job.utility):
        return dict(zip(("attacks", "benign"), map(suite_digest, named.all()), strict=True))
    return {
        suite.name: f"{suite.revision} {suite.version}"
        if suite.name in REGISTRY
        else suite_digest(suite)
        for suite in named.all()
    }


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
        length = math.ceil(length / job.one_in(split))
        made.append(suites.load(name, split, length))
    return made


def pairs_of(job: RepairJob, n: int = 48, pictured: bool = True) -> list[Pair]:
    """At most `n` pairs of each of two kinds from the small world, on goals to fit on.

    First pairs that differ in the picture: of the embedded model the same request beside an
    adversarial and a plain one, of others a malicious and a harmless goal in the picture. Then
    pairs that differ in the text: harmful and harmless twins, and without `pictured` they alone.
    None for suites that were named.
    """
    if job.attacks:
        return []
    from care.data.small_world import minimal_pairs as twins
    from care.data.small_world import suites

    attack, benign, kind = (
        (suites.PGD[0], "beside-image", "adversarial pictures")
        if job.model.name is None
        else ("pictured-goal", "benign-pictured", "harmful pictures")
    )
    found = (suites.load(name, "fit", n) for name in (attack, benign))
    seen = [Pair(one, other, kind) for one, other in zip(*found, strict=True) if pictured]
    return seen + twins.load("fit", n)


def without_pictures(suite: Suite) -> Suite | None:
    """What of a suite a model which reads text alone can be asked; None if that is nothing."""
    examples = tuple(example for example in suite if not example.images)
    return replace(suite, examples=examples) if examples else None


def split_examples(suites: Sequence[Suite], role: Callable[[Suite], bool]) -> list[Example]:
    """All examples of the suites for which `role` holds."""
    return [example for suite in suites if role(suite) for example in suite]


def sampled(suite: Suite, split: str) -> Suite:
    """What a diagnosis alone asks of a suite."""
    if split == "fit":
        return suite.head(math.ceil(len(suite) / SAMPLE))
    return suite if suite.role == "attack" else suite.head(SAMPLED_BENIGN)
