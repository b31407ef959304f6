"""How rivals are fitted in a comparison: what they are given, and which settings are one fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from care.data.example import Suite
from care.defenses.base import Defense
from care.defenses.cost import Cost
from care.models.vlm import VLM
from care.pipeline.comparison_judges import halved
from care.pipeline.comparison_rows import Materials, RivalFits
from care.pipeline.config import CompareJob
from care.pipeline.stages import Stages
from care.runs.spec import RunSpec
from kit import fits, tiny

GIVEN: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Trained(Defense):
    """A stand-in that is trained, but for its threshold."""

    name: str = "trained"
    rate: float = 0.0
    threshold: float = 0.5
    cost: ClassVar[Cost] = Cost(trains=True)
    unfitted: ClassVar[tuple[str, ...]] = ("threshold",)

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Any,
        benign: Any,
        *,
        rate: float = 0.1,
        threshold: float = 0.5,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Trained:
        GIVEN.append({"rate": rate, "seed": seed, "batch_size": batch_size})
        return cls(rate=rate, threshold=threshold)


class Read(Trained):
    """The same that trains nothing."""

    cost: ClassVar[Cost] = Cost()


def made(vlm: VLM, kind: type[Defense], **always: Any) -> RivalFits:
    GIVEN.clear()
    job = CompareJob(run=RunSpec(Path("out"), False, 5, 64))
    work = cast(Stages, SimpleNamespace(vlm=vlm, job=job))
    return RivalFits(work, kind, Materials(fits.material(4, 4), 8, 0), always)


@pytest.mark.parametrize(("kind", "batch"), [(Trained, 16), (Read, 64)])
def test_what_is_trained_is_trained_in_batches_as_published(vlm, kind, batch):
    made(vlm, kind).made({"rate": 0.5}, 2)
    assert [{"rate": 0.5, "seed": 7, "batch_size": batch}] == GIVEN


def test_settings_that_differ_in_what_enters_no_fit_are_one_fit(vlm):
    rival = made(vlm, Trained)
    found = [
        rival.made({"rate": rate, "threshold": threshold}, 0)
        for rate in (0.5, 1.0)
        for threshold in (0.1, 0.9)
    ]
    assert [(d.rate, d.threshold) for d, _ in cast(Any, found)] == [
        (0.5, 0.1),
        (0.5, 0.9),
        (1.0, 0.1),
        (1.0, 0.9),
    ]
    assert [given["rate"] for given in GIVEN] == [0.5, 1.0]
    rival.made({"rate": 0.5, "threshold": 0.1}, 1)  # another part of the material
    assert len(GIVEN) == 3


def test_every_other_example_is_left_of_each_suite():
    examples = tuple(tiny.mixed_examples(5))
    whole = Suite(name="s", role="utility", examples=examples)
    [half] = halved([whole])
    assert half == replace(whole, examples=examples[::2]) and len(half) == 3


def test_parts_keep_the_activations_that_come_with_them():
    material = fits.material(4, 4)
    site = tiny.tiny_vlm().anatomy.sites("layer_out")[0]
    rows = tuple(
        np.arange(len(part), dtype=np.float32)[:, None]
        for part in (material.complied, material.refused, material.answered)
    )
    part = Materials(replace(material, decisions={site: rows}), 3, 0).of(1)
    for own, old, values in zip(
        (part.complied, part.refused, part.answered),
        (material.complied, material.refused, material.answered),
        part.decisions[site],
        strict=True,
    ):
        assert own == tuple(old[int(place)] for place in values[:, 0]) and len(own) == 3
