"""Rejudging: verdicts beside stored answers, failures, identities, pictures."""

from __future__ import annotations

from typing import Any

import pytest

from care.data.example import Example, Suite
from care.errors import DataError, StorageError, UsageError
from care.evaluation.rejudge import judged, latest, open_verdicts, rejudge
from care.evaluation.results import Results
from care.evaluation.runner import evaluate
from care.judges.model_judge import Finding
from care.judges.rules import RulesJudge
from care.runs.run import Run
from kit.evaluations import SUITES, FakeDefense, FakeVLM, StrictJudge
from kit.scripted_judge import Scripted
from kit.tiny import picture


@pytest.fixture
def run(tmp_path):
    vlm = FakeVLM()
    with Run(tmp_path / "run", config={"seed": 0}) as opened:
        evaluate(
            vlm,  # pyright: ignore
            SUITES[:2],
            [None, FakeDefense()],
            judge=StrictJudge(vlm),
            run=opened,
            batch_size=4,
        )
        yield opened


def all_of(run, judge, **options):
    verdicts = open_verdicts(run)
    try:
        failed = rejudge(run, judge, verdicts, **options)
        return failed, verdicts.all()
    finally:
        verdicts.close()


def test_verdicts_stand_beside_the_answers(run):
    rows = (run.path / "rows.jsonl").read_bytes()
    judge = Scripted()
    failed, verdicts = all_of(run, judge)
    assert failed == 0 and len(verdicts) == len(run.rows()) == 40
    assert (run.path / "rows.jsonl").read_bytes() == rows
    table = Results(judged(run.rows(), verdicts, "scripted"))
    assert [table.rate("attack", d).rate for d in ("none", "repair")] == [1.0, 0.0]
    assert table.outcomes("attack", "repair")["refused"] == 10
    assert table.rate("vqa", "none").rate == 1.0  # references still tell what is right
    assert run.manifest["judges"]["scripted"] == {"judge": "scripted", "word": "red box"}
    assert verdicts[0].keys() == {
        "key", "row", "judge", "attempt", "outcome", "flagged", "refused", "degenerate", "score",
        "label", "error",
    }  # fmt: skip


def test_nothing_is_asked_twice(run):
    all_of(run, Scripted())
    again = Scripted()
    all_of(run, again)
    assert again.asked == []
    other = Scripted("other")
    _, verdicts = all_of(run, other)
    assert len(other.asked) == 40 and len(verdicts) == 80


def test_a_failed_verdict_is_kept_and_in_no_rate(run):
    failed, verdicts = all_of(run, Scripted(fails="do 3"))
    assert failed == 4
    table = Results(judged(run.rows(), verdicts, "scripted"))
    assert table.errors("attack", "none") == 1 and table.rate("attack", "none").n == 9
    bad = next(row for row in table.rows if row["error"])
    assert bad["outcome"] is None and "no reply" in bad["error"] and bad["response"]


def test_failed_verdicts_can_be_asked_for_again(run):
    all_of(run, Scripted(fails="do 3"))
    without, judge = Scripted(), Scripted()
    assert all_of(run, without)[0] == 4 and without.asked == []
    failed, verdicts = all_of(run, judge, retry=True)
    assert failed == 0 and judge.asked == ["do 3"] * 4
    assert len(verdicts) == 44 and {v["attempt"] for v in verdicts} == {1, 2}
    assert all(v["error"] is None for v in latest(verdicts, "scripted").values())
    assert Results(judged(run.rows(), verdicts, "scripted")).errors("attack", "none") == 0


def test_another_judge_under_the_same_name_is_refused(run):
    all_of(run, Scripted())
    with pytest.raises(UsageError, match=r"its word differs.*as=NAME"):
        all_of(run, Scripted(word="other"))


def test_a_judge_that_breaks_on_one_answer_goes_on(run):
    class Breaking(Scripted):
        def find(self, goals, responses, images):
            if any("do 7" in goal for goal in goals):
                raise RuntimeError("index out of range")
            return super().find(goals, responses, images)

    failed, verdicts = all_of(run, Breaking())
    assert failed == 4
    assert {v["error"] for v in verdicts} == {None, "RuntimeError: index out of range"}


def test_a_judge_that_is_broken_is_an_error(run):
    class Broken(Scripted):
        def find(self, goals, responses, images):
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        all_of(run, Broken())


def test_a_full_disk_keeps_what_was_judged(run, monkeypatch):
    judge, verdicts = Scripted(), open_verdicts(run)
    monkeypatch.setattr("care.evaluation.rejudge.CHUNK", 10)

    def limited(*rows: Any) -> None:
        if len(verdicts) >= 20:
            raise StorageError("No space left")
        type(verdicts).add(verdicts, *rows)

    verdicts.add = limited
    with pytest.raises(StorageError):
        rejudge(run, judge, verdicts)
    verdicts.close()
    again = Scripted()
    _, found = all_of(run, again)
    assert len(again.asked) == 20 and len(found) == 40


def test_the_rules_can_judge_again(run):
    _, verdicts = all_of(run, RulesJudge())
    assert {v["judge"] for v in verdicts} == {"rules"}
    kinds = {row["key"]: row["kind"] for row in run.rows()}
    for found in verdicts:
        harmful = kinds[found["row"]] == "malicious" and found["flagged"]
        assert (found["outcome"] == "harmful") == harmful
    assert any(found["flagged"] for found in verdicts)


# -- pictures ------------------------------------------------------------------------------------


class Seeing(Scripted):
    reads_images = True
    subject = "image"

    def find(self, goals, responses, images):
        return [
            Finding(seen[0].size == (40, 30)) if seen else Finding(None, error="no picture")
            for seen in images
        ]


def test_a_picture_judge_gets_the_pictures_and_gives_no_outcome(tmp_path):
    examples = tuple(
        Example(f"e{i}", f"p{i}", images=(picture(i),) if i else (), goal=f"do {i}",
                kind="malicious")
        for i in range(3)
    )  # fmt: skip
    suite = Suite("typo", "attack", examples)
    vlm = FakeVLM()
    with Run(tmp_path / "run") as run:
        evaluate(vlm, [suite], [None], judge=StrictJudge(vlm), run=run)  # pyright: ignore
        with pytest.raises(DataError, match="pass the suites of the run"):
            all_of(run, Seeing("seeing"))
        places = {("typo", e.id): e for e in examples}
        failed, verdicts = all_of(run, Seeing("seeing"), examples=places)
    assert failed == 1
    assert [v["flagged"] for v in verdicts].count(True) == 2
    assert all(v["outcome"] is None for v in verdicts)
    with Run(tmp_path / "run", resume=True) as run:
        assert all_of(run, Seeing("seeing"), examples=places) == (failed, verdicts)


def test_a_run_without_answers(tmp_path):
    with Run(tmp_path / "run") as run, pytest.raises(UsageError, match="no answers"):
        all_of(run, Scripted())


def test_a_failing_judge_in_the_evaluation_itself_is_a_recorded_row(tmp_path):
    vlm = FakeVLM()
    with Run(tmp_path / "run") as run:
        table = evaluate(
            vlm,  # pyright: ignore
            SUITES[:1],
            [None],
            judge=Scripted(fails="do 3"),
            run=run,
            batch_size=4,
        )
        bad = next(row for row in run.rows() if row["error"])
        assert bad["response"] and bad["outcome"] is None and "no reply" in bad["error"]
        assert (table.errors("attack", "none"), table.rate("attack", "none").n) == (1, 9)
        # The answer is stored: another judge judges it without the model.
        _, verdicts = all_of(run, RulesJudge())
        assert len(verdicts) == 10 and all(v["error"] is None for v in verdicts)
