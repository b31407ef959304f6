"""Attacks that know the defense, in a comparison: the same budget against every row.

A picture is made against the bare model and through every row that edits or reads pictures, and
shown to that row beside the bare model's own; attacks in variants ask every row the same. Held-out
are the test requests without pictures. Not here: attacks that search their variants on each
defense, or that join others (`care evaluate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from care.data.example import Suite
from care.defenses.base import Defense
from care.errors import UsageError
from care.evaluation.adaptive import image_suites, make_images, number, owners, suite_name
from care.evaluation.asked_attacks import (
    AskedVariants,
    ImageAttack,
    attacks_in_variants,
    image_attacks,
)
from care.evaluation.attack_scores import AttackFigure
from care.evaluation.config import UNDEFENDED
from care.evaluation.results import Results
from care.evaluation.union import union_of
from care.evaluation.variants import fixed_suites
from care.pipeline.stages import Stages


@dataclass(frozen=True)
class AskedAttacks:
    """The attacks that were asked for."""

    images: tuple[ImageAttack, ...]
    """With pictures."""
    in_variants: tuple[AskedVariants, ...]
    """In variants of each request."""

    @classmethod
    def of(cls, adaptive: Sequence[str]) -> Self:
        """From text; UsageError for what can't be read, or can't be asked of every row alike."""
        in_variants = attacks_in_variants(adaptive)
        for one in in_variants:
            if one.by_defense:
                raise UsageError(
                    f"The attack {one.name} searches on each defense or joins others, which a "
                    "comparison doesn't; ask for it with care evaluate --adaptive."
                )
        return cls(tuple(image_attacks(adaptive)), tuple(in_variants))


def attacked(
    work: Stages,
    attacks: AskedAttacks,
    defenses: Mapping[str, Defense],
    folders: Mapping[str, Path],
    tests: Sequence[Suite],
) -> list[AttackFigure]:
    """Transfer and adaptive figures of every attack under every defense; empty without attacks.

    `folders` are those of defenses that are stored; through others no picture is made.
    """
    images, in_variants = attacks.images, attacks.in_variants
    if not (images or in_variants):
        return []
    job, run = work.job, work.run
    held = _held_out(tests)
    places: dict[str, Path | None] = {UNDEFENDED: None, **folders}
    number(run, places)
    make_images(images, places, run, job.model, job.run.seed, work.vlm, work.progress)
    made = image_suites(images, run.path, list(places), [held] * len(images))
    by_name = {suite.name: suite for suite in made}
    asked = [by_name[suite_name(one, UNDEFENDED)] for one in images]
    asked += fixed_suites(in_variants, [held] * len(in_variants))
    found = list(work.ask(asked, [None, *defenses.items()], "attacks").rows)
    for name in folders:
        own = [by_name[n] for one in images if (n := suite_name(one, name)) in by_name]
        if own:
            found += work.ask(own, [(name, defenses[name])], "attacks").rows
    made_on = {one.name: owners(run.path, one, places) for one in images}
    figures, _ = union_of(Results(found), in_variants, images, job.run.seed, made_on)
    return figures


def _held_out(tests: Sequence[Suite]) -> Suite:
    """The first attack suite's requests without pictures; UsageError if there is none."""
    for suite in tests:
        plain = tuple(e for e in suite if e.kind == "malicious" and not e.images)
        if suite.role == "attack" and plain:
            return replace(suite, examples=plain)
    raise UsageError(
        "None of the test suites has malicious requests without pictures, which attacks that know "
        "the defense are made for; leave --adaptive out."
    )
