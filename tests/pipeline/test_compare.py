"""A comparison on a tiny model: every rival at its best, and a killed job goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from care.defenses.rivals.cmrm import Cmrm
from care.defenses.rivals.difference_of_means import DifferenceOfMeans
from care.errors import FitError, UsageError
from care.evaluation import runner
from care.evaluation.comparison_table import CARE, TUNED, ComparisonTable
from care.interfaces.cli.app import main
from care.pipeline import compare as comparing
from care.pipeline.compare import compare
from care.pipeline.comparison_attacks import AskedAttacks
from care.pipeline.comparison_rows import FIRST, NOT_QUICK, QUICKER, plan_of, rivals
from care.pipeline.config import FIRST_LOOKED, CompareJob
from care.pipeline.fits import Fit
from care.pipeline.tuning import TuningSize, options_of, settings_of
from care.report.comparison import SCHEMA, TITLE, write_comparison
from care.report.studies import write_studies
from care.runs.spec import RunSpec
from care.typed import from_tree
from kit.comparisons import studies
from kit.jobs import files, own_files, tiny_parts  # noqa: F401

FEW: dict[str, Any] = {"test_length": 6, "max_new_tokens": 4, "fitted_on": 30}
SIZE = TuningSize(3, 2, {"attack": 6, "utility": 6, "over_refusal": 6})
OWN = [
    "none",
    "care: paper",
    "care: official",
    "care: edits only",
    "care: monitors only",
    "care",
    "care: paper, tuned",
    "care: official, tuned",
    "care, tuned",
    "care: random subspace",
    "care: random monitors",
    "care: shuffled labels",
]


def a_job(out: Path, *, resume: bool = False, **more: Any) -> CompareJob:
    return CompareJob(run=RunSpec(out, resume, 0, 8), **(FEW | more))


def untimed(table: ComparisonTable) -> ComparisonTable:
    """The table without what a clock tells."""
    rows = [
        replace(row, cost=row.cost and replace(row.cost, fit_seconds=0.0, overhead=None))
        for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_with_the_same_table(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(comparing, "FULL", SIZE)
    asked: dict[str, Any] = {"defenses": ("difference-of-means",), "seeds": 2, **files}
    asked["adaptive"] = ("pgd-32,steps=2,restarts=1,batch_size=2", "openings,text=Sure")
    few = asked | {"defenses": ("self-reminder",), "seeds": 1, "adaptive": ()}
    first = compare(a_job(tmp_path / "whole", **few))
    table = compare(a_job(tmp_path / "whole", resume=True, **asked))  # more rows, fits and attacks
    assert first.rows[-1].name == "self-reminder"
    for one, other in zip(first.rows[:-1], table.rows[:-1], strict=True):
        assert one.name == other.name and one.suites == other.suites and one.asr == other.asr
    rows = {row.name: row for row in table.rows}
    assert list(rows) == [*OWN, "difference-of-means"]
    rival, care = rows["difference-of-means"], rows[CARE]
    assert rival.group == "rival" and "Rimsky" in rival.paper
    assert len(rival.tried) == 3 and [each.chosen for each in rival.tried].count(True) == 1
    assert rival.tried[0].options == {"depth": 0.4375, "strength": 1.0}
    assert [fit.number for fit in rival.fits] == [0, 1] == [fit.number for fit in care.fits]
    tuned = [rows[plan.name] for plan in comparing.tuned_plans().values()]
    assert [len(row.tried) for row in tuned] == [3, 3, 3] and not care.tried
    assert rows[TUNED].tried[0].options["false_alarms"] == 0.05
    assert [fit.number for fit in rows[TUNED].fits] == [0, 1] and rows[TUNED].certified
    assert rival.against_tuned is not None and rows[TUNED].against_tuned is None
    assert care.against is None and rival.against is not None
    assert rival.cost is not None and rival.cost.harmful and rival.cost.overhead
    assert care.cost is not None and care.cost.fit_seconds > 0
    for row in (rival, care):
        assert [figure.attack for figure in row.adaptive] == ["pgd-32", "openings"]
    assert table.budget.answers == 12  # of the user's own files, which have no utility suite

    tried, fitted = DifferenceOfMeans.fit.__func__, []

    @wraps(tried)
    def once(cls, *given, **options):
        fitted.append(options["depth"])
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return tried(cls, *given, **options)

    monkeypatch.setattr(DifferenceOfMeans, "fit", classmethod(once))
    with pytest.raises(KeyboardInterrupt):
        compare(a_job(tmp_path / "killed", **asked))
    work, judged = runner._judge, []
    monkeypatch.setattr(runner, "_judge", lambda *a: judged.append(1) or work(*a))
    job = a_job(tmp_path / "killed", resume=True, **asked)
    assert untimed(compare(job)) == untimed(table)
    count = len(judged)
    again = compare(job)
    assert untimed(again) == untimed(table) and len(judged) == count > 0

    write_comparison(table, tmp_path / "whole")
    settings, bare = tmp_path / "whole" / "table.json", asked | {"adaptive": ()}
    taken = a_job(tmp_path / "given", settings=settings, **bare)
    given = compare(taken)  # the settings that were taken, without a search
    for one, other in zip(given.rows, table.rows, strict=True):
        assert (one.name, one.suites) == (other.name, other.suites)
        assert len(one.tried) == min(1, len(other.tried)), one.name
    assert any("not searched here" in note and "care, tuned" in note for note in given.notes)

    page = write_comparison(table, tmp_path / "whole")
    tree = json.loads((tmp_path / "whole" / "table.json").read_text())
    assert (tree.pop("schema"), tree.pop("title")) == (SCHEMA, TITLE)
    assert from_tree(ComparisonTable, tree, "comparison") == table
    assert all(row.name in page.read_text() for row in table.rows)
    monkeypatch.setattr(comparing, "compare", lambda job, progress: table)
    (tmp_path / "told").mkdir()
    write_studies(studies(), tmp_path / "told")
    assert main(["compare", "--out", str(tmp_path / "told")]) == 0
    said = capsys.readouterr().out
    assert studies().claims[0] in said
    assert "difference-of-means" in said and table.claims[0] in said and "report.html" in said


@pytest.mark.slow
def test_settings_that_cannot_be_fitted_are_told_and_rows_are_added_to_what_is_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = DifferenceOfMeans.fit.__func__

    @wraps(fit)
    def fails_deep(cls, *given, **options):
        if options["depth"] > 0.5:
            raise FitError("too deep")
        return fit(cls, *given, **options)

    monkeypatch.setattr(comparing, "FIRST_LOOK", replace(SIZE, settings=6))
    monkeypatch.setattr(DifferenceOfMeans, "fit", classmethod(fails_deep))
    asked: dict[str, Any] = {"defenses": ("difference-of-means",), "quick": True}
    asked |= own_files(tmp_path, 480)
    with monkeypatch.context() as before:
        before.setattr(comparing, "tuned_plans", lambda quick: {})
        old = compare(a_job(tmp_path / "out", **asked))
    table = compare(a_job(tmp_path / "out", resume=True, **asked))
    new = {plan.name for plan in comparing.tuned_plans(quick=True).values()}
    assert new == {TUNED} and {row.name for row in table.rows}.isdisjoint(NOT_QUICK)
    assert {row.name for row in table.rows} - {row.name for row in old.rows} == new
    kept = [row for row in untimed(table).rows if row.name not in new]
    for one, other in zip(untimed(old).rows, kept, strict=True):  # p is corrected over more rows
        assert replace(one, against=None) == replace(other, against=None, against_tuned=None)
    row = table.rows[-1]
    deep = [each for each in row.tried if each.options["depth"] > 0.5]
    assert deep and all(each.failed == "too deep" and each.asr is None for each in deep)
    assert [each.chosen for each in row.tried].count(True) == 1 and row.failed is None
    assert len(row.fits) == 1 and any("Quick" in note for note in table.notes)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["quick"] == manifest["config"]["quick"] == FIRST_LOOKED


def test_what_a_quick_one_shortens_are_options_of_its_rivals() -> None:
    there = rivals([])
    assert list(rivals([], quick=True)) == list(FIRST) and set(FIRST) < there.keys()
    assert rivals(["all"], quick=True) == rivals(["all"]) == there
    known = [name for name in QUICKER if name in there]
    assert known
    for name in known:
        kind = there[name]
        takes = options_of(kind)
        assert QUICKER[name].keys() <= takes.keys(), name
        assert any(takes[key].default != value for key, value in QUICKER[name].items()), name
        assert settings_of(kind, 3, always=QUICKER[name])


def test_wrong_names_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no rival 'astro' to compare; there are .*astra"):
        rivals(["astro"])
    with pytest.raises(UsageError, match="no rival 'repair'"):
        rivals(["repair"])
    with pytest.raises(UsageError, match="no rival 'all'"):
        rivals(["all", "astra"])
    with pytest.raises(UsageError, match="named twice"):
        rivals(["astra", "astra"])
    with pytest.raises(UsageError, match="gcg searches on each defense"):
        AskedAttacks.of(["gcg"])
    with pytest.raises(UsageError, match="leave out tune=True"):
        CompareJob(tune=True)
    assert {"astra", "difference-of-means"} <= rivals([]).keys()
    assert not {"repair", "neurons"} & rivals([]).keys()
    assert not (tmp_path / "out").exists()


def test_a_row_declares_the_cost_of_the_settings_that_were_taken() -> None:
    made = Cmrm(layers=(1,), direction=np.ones((1, 4)), anchor="request")
    for defense, forwards in ((made, 2.0), (replace(made, anchor="data"), 0.0), (None, 0.0)):
        row = comparing._Row(plan_of("cmrm", Cmrm), (Fit(defense, 1.0, None),))
        planned = comparing._Comparison._planned(cast("Any", None), row, (3, 4), {}, ())
        assert planned.cost is not None
        assert (planned.cost.forwards, planned.cost.harmful) == (forwards, 3)
