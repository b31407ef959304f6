"""Further studies of a comparison on a tiny model: what is fitted, asked, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from care.data.example import Suite
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.defenses.repair.repair import Repair
from care.defenses.rivals.difference_of_means import DifferenceOfMeans
from care.defenses.rivals.self_reminder import SelfReminder
from care.errors import FitError, UsageError
from care.evaluation import runner
from care.evaluation.comparison_table import CARE, TriedSettings
from care.evaluation.results import Results
from care.pipeline import compare as comparing
from care.pipeline import splits
from care.pipeline.compare import compare
from care.pipeline.config import CompareJob, RepairJob
from care.pipeline.studies import (
    FACTORS,
    OWN,
    SIZES,
    best_rivals,
    check_studies,
    sizes_of,
    strength_of,
)
from care.pipeline.tuning import TuningSize
from care.report.comparison import write_comparison
from care.report.studies import load_studies
from care.runs.spec import RunSpec
from kit import tiny
from kit.comparisons import judged
from kit.jobs import files, tiny_parts  # noqa: F401
from kit.repairs import SITE, made

SIZE = TuningSize(3, 3, {"attack": 6, "utility": 6, "over_refusal": 6})
ALL = ("families", "sizes", "strengths")


def a_job(out: Path, *, resume: bool = False, **more: Any) -> CompareJob:
    few: dict[str, Any] = {"test_length": 6, "max_new_tokens": 4, "fitted_on": 30, "seeds": 1}
    few["defenses"] = ("difference-of-means", "self-reminder")
    return CompareJob(run=RunSpec(out, resume, 0, 32), **(few | more))


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's attacks as two suites, of which either can be left out."""
    whole = splits.plan_of

    def parted(job: RepairJob, *read: Any) -> dict[Any, list[Suite]]:
        return {split: _parted(*suites) for split, suites in whole(job, *read).items()}

    def _parted(attacks: Suite, benign: Suite) -> list[Suite]:
        parts = {"even": attacks.examples[::2], "odd": attacks.examples[1::2]}
        named = {n: tuple(replace(e, suite=n) for e in part) for n, part in parts.items()}
        return [*(Suite(name=n, role="attack", examples=e) for n, e in named.items()), benign]

    monkeypatch.setattr(splits, "plan_of", parted)


@pytest.mark.slow
def test_a_finished_comparison_goes_on_with_studies_and_asks_nothing_again(
    files: dict[str, Path], families: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "FULL", SIZE)
    monkeypatch.setattr(comparing, "tuned_plans", lambda quick: {})  # which aren't studied
    out = tmp_path / "out"
    table = compare(a_job(out, **files))
    asked = [row["key"] for row in _rows(out)]
    assert load_studies(out) is None

    judged, judge = [], runner._judge
    monkeypatch.setattr(runner, "_judge", lambda cell, *a: judged.append(cell) or judge(cell, *a))
    again = compare(a_job(out, resume=True, studies=("strengths",), **files))
    assert again.claims == table.claims
    found = load_studies(out)
    assert found is not None and not found.families and not found.sizes
    assert {cell.name for cell in judged} >= {"self-reminder", "care: edits only, strength × 0"}
    asked_again = {cell.name for cell in judged if ", strength × " not in cell.name}
    assert asked_again == {"self-reminder"}  # had nothing to choose, so wasn't asked the sample
    assert [row["key"] for row in _rows(out)] == asked
    assert found.defenses[:3] == OWN
    assert sorted(found.defenses[3:]) == ["difference-of-means", "self-reminder"]
    assert {point.defense for point in found.strengths} == {
        "care: edits only",
        "difference-of-means",
    }
    answers = {(r["defense"], r["example"]): r["response"] for r in _rows(out / "tuning")}
    for name in ("care: edits only", "difference-of-means"):
        own = [point for point in found.strengths if point.defense == name]
        assert [point.factor for point in own] == list(FACTORS)
        assert own[0].strength == 0.0
        bare = {e: r for (d, e), r in answers.items() if d == "none"}
        still = {
            e: r
            for (d, e), r in answers.items()
            if d.startswith(name) and d.endswith(", strength × 0")
        }
        assert bare == still and len(bare) == 12

    judged.clear()
    killed = DifferenceOfMeans.fit.__func__

    @wraps(killed)
    def dies(cls: Any, *given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(DifferenceOfMeans, "fit", classmethod(dies))
    with pytest.raises(KeyboardInterrupt):
        compare(a_job(out, resume=True, studies=("families", "sizes"), **files))

    @wraps(killed)
    def fails_on_few(cls: Any, vlm: Any, attacks: Any, *given: Any, **options: Any) -> Any:
        if len(attacks) <= 32:
            raise FitError("too few")
        return killed(cls, vlm, attacks, *given, **options)

    monkeypatch.setattr(DifferenceOfMeans, "fit", classmethod(fails_on_few))
    compare(a_job(out, resume=True, studies=("families", "sizes"), **files))
    whole = load_studies(out)
    assert whole is not None and whole.strengths == found.strengths  # of the attempt before
    rows = [row for row in whole.families if row.defense == CARE]
    assert sorted(row.family for row in rows) == ["even", "odd"]
    assert all(row.failed is None and row.against is not None for row in rows)
    sizes = [point for point in whole.sizes if point.defense == "difference-of-means"]
    assert [point.most for point in sizes[:2]] == [16, max(sizes[-1].counts.values())]
    assert sizes[0].failed == "too few" and sizes[0].asr is None
    assert all(point.asr is not None and point.counts["answered"] for point in sizes[1:])
    asked = json.loads((out / "manifest.json").read_text())["asked"]
    assert asked["studies"] == ["families", "sizes"]
    assert "Unseen families" in write_comparison(table, out).read_text()

    count, kept = len(judged), (out / "studies.json").read_bytes()
    compare(a_job(out, resume=True, studies=ALL, **files))
    assert len(judged) == count and (out / "studies.json").read_bytes() == kept


def settings(asr: float | None, answered: float | None = 1.0) -> TriedSettings:
    return TriedSettings({}, None, asr, None if asr is None else 1.0, answered, True)


class Asked:
    """Stands in for a search: what rivals with nothing to choose come to."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def asked(self, defenses: Any) -> Results:
        self.names = [name for name, _ in defenses]
        parts = {"none": "h" * 10, "unset": "h" * 3 + "r" * 7}
        return Results(
            judged(suite, role, name, place, outcome if role == "attack" else "s")
            for name in ("none", *self.names)
            for suite, role in (("attack", "attack"), ("over_refusal", "over_refusal"))
            for place, outcome in enumerate(parts[name])
        )


def test_the_best_rivals_are_those_of_least_validation_asr_within_the_limits() -> None:
    taken = {
        "all": settings(0.0, 0.0),  # refuses everything: far beyond the limits
        "nearly": settings(0.0, 0.96),  # 1 point beyond
        "weak": settings(0.9),
        "good": settings(0.1, 0.97),
        "fair": settings(0.5),
        "unset": settings(None, None),
        "also": settings(0.5),
    }
    work = Asked()
    fit = DifferenceOfMeans(layers=(1,), direction=np.ones((1, 32)))
    given: Any = work
    found = best_rivals(given, {name: (each, fit) for name, each in taken.items()})
    assert work.names == ["unset"]
    assert found == ["good", "unset", "fair", "also", "weak"]
    less = {name: (taken[name], fit) for name in ("all", "nearly")}
    assert best_rivals(given, less) == ["nearly", "all"]


def test_sizes_end_with_what_there_is() -> None:
    assert sizes_of(5) == [5] and sizes_of(16) == [16]
    assert sizes_of(300) == [16, 64, 250, 300]
    assert sizes_of(1000) == list(SIZES) == sizes_of(5000)


def test_a_strength_is_that_of_all_that_a_defense_does() -> None:
    edits = Repair((made(strength=1.5),))
    direction = np.ones(tiny.WIDTH, np.float32)
    watching = Monitor("answer", 0.0, SITE, Detector(direction, direction), "mean")
    assert strength_of(edits) == 1.5
    assert strength_of(replace(edits, monitors=(watching,))) is None
    steering = DifferenceOfMeans(layers=(1,), direction=np.ones((1, 32)), strength=0.5)
    assert strength_of(steering) == 0.5
    assert strength_of(SelfReminder()) is None


def test_a_study_that_there_is_not_is_one_sentence() -> None:
    check_studies(ALL)
    with pytest.raises(UsageError, match=r"no study 'strenghts'.*families, sizes, strengths"):
        check_studies(["strenghts"])


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
