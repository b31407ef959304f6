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
from care.defenses.repair.repair import Repair
from care.defenses.rivals.difference_of_means import DifferenceOfMeans
from care.errors import UsageError
from care.evaluation import runner
from care.evaluation.comparison_studies import AtStrength, FittedOn, UnseenFamily
from care.evaluation.comparison_table import CARE, TriedSettings
from care.evaluation.results import Results
from care.pipeline import compare as comparing
from care.pipeline import studies, workspace
from care.pipeline.compare import compare
from care.pipeline.comparison_rows import Materials, Part
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
from care.report.studies import load_studies
from care.runs.spec import RunSpec
from kit.comparisons import judged
from kit.jobs import files, tiny_parts  # noqa: F401

SIZE = TuningSize(3, {"attack": 6, "utility": 6, "over_refusal": 6})
ALL = ("families", "sizes", "strengths")


def a_job(out: Path, resume: bool = False, **more: Any) -> CompareJob:
    few: dict[str, Any] = {"test_length": 6, "max_new_tokens": 4, "fitted_on": 30, "seeds": 1}
    few["defenses"] = ("difference-of-means", "self-reminder")
    return CompareJob(run=RunSpec(out, resume, 0, 8), **(few | more))


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's attacks as two suites, of which either can be left out."""
    whole = workspace.suites_of

    def parted(job: RepairJob, split: Any) -> list[Suite]:
        attacks, benign = whole(job, split)
        parts = {"even": attacks.examples[::2], "odd": attacks.examples[1::2]}
        named = {n: tuple(replace(e, suite=n) for e in part) for n, part in parts.items()}
        return [*(Suite(name=n, role="attack", examples=e) for n, e in named.items()), benign]

    monkeypatch.setattr(workspace, "suites_of", parted)


@pytest.mark.slow
def test_a_finished_comparison_goes_on_with_studies_and_asks_nothing_again(
    files: dict[str, Path], families: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "FULL", SIZE)
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
    assert not {cell.name for cell in judged} & {CARE, "none", "difference-of-means, setting 1"}
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
        still = {e: r for (d, e), r in answers.items() if d == f"{name}, strength × 0"}
        assert bare == still and len(bare) == 12

    judged.clear()
    killed = DifferenceOfMeans.fit.__func__

    @wraps(killed)
    def dies(cls: Any, *given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(DifferenceOfMeans, "fit", classmethod(dies))
    with pytest.raises(KeyboardInterrupt):
        compare(a_job(out, resume=True, studies=("families", "sizes"), **files))
    monkeypatch.setattr(DifferenceOfMeans, "fit", classmethod(killed))
    compare(a_job(out, resume=True, studies=("families", "sizes"), **files))
    whole = load_studies(out)
    assert whole is not None and whole.strengths == found.strengths  # of the attempt before
    rows = [row for row in whole.families if row.defense == CARE]
    assert sorted(row.family for row in rows) == ["even", "odd"]
    assert all(row.failed is None and row.against is not None for row in rows)
    sizes = [point for point in whole.sizes if point.defense == "difference-of-means"]
    assert [point.most for point in sizes][0] == 16
    assert all(point.asr is not None and point.counts["answered"] for point in sizes)
    assert json.loads((out / "manifest.json").read_text())["studies"] == sorted(ALL)
    assert "Unseen families" in (out / "report.html").read_text() or not whole.families

    count, kept = len(judged), (out / "studies.json").read_bytes()
    compare(a_job(out, resume=True, studies=ALL, **files))
    assert len(judged) == count and (out / "studies.json").read_bytes() == kept


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
