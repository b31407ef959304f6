"""`care export --format inspect`: what a run holds is what Inspect reads back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from care.data.example import Example, Suite
from care.data.jsonl import write_suite
from care.data.registry import load_suite
from care.errors import DataError
from care.evaluation.rejudge import open_verdicts, rejudge
from care.evaluation.runner import evaluate
from care.interfaces.cli import app as cli
from care.runs.run import Run
from care.statistics.intervals import wilson
from care.statistics.paired import cluster_rate
from kit.evaluations import REFUSAL, FakeDefense, FakeVLM, StrictJudge
from kit.scripted_judge import Scripted
from kit.tiny import picture

pytest.importorskip("inspect_ai", reason="Inspect isn't installed: pip install 'care-vlm[inspect]'")

from inspect_ai.log import list_eval_logs, read_eval_log  # pyright: ignore

from care.interfaces.inspect.logs import write_logs
from care.interfaces.requests.chat import conversation

N = 8


@pytest.fixture
def run(tmp_path):
    """A run of two suites in files, bare and defended, in which one example failed and a second
    judge failed on one goal; its folder."""
    attacks = Suite(
        "attack",
        "attack",
        tuple(
            Example(
                f"e{i}",
                f"attack {i}",
                (picture(i),),
                f"do {i % 4}",
                "malicious",
                opening="Sure" if i == 1 else "",
            )
            for i in range(N)
        ),
    )
    questions = Suite(
        "vqa",
        "utility",
        tuple(
            Example(f"q{i}", f"colour {i}?", (), "name it", references=("red", "crimson"))
            for i in range(N)
        ),
    )
    suites = [
        load_suite(write_suite(s, tmp_path / f"{s.name}.jsonl")) for s in (attacks, questions)
    ]
    vlm = FakeVLM()
    vlm.broken = lambda example: DataError("too long") if example.id == "e3" else None
    config = {"seed": 0, "suites": [suites[0].source], "utility": [suites[1].source]}
    with Run(tmp_path / "run", config=config) as opened:
        judge = StrictJudge(vlm)
        evaluate(vlm, suites, [None, FakeDefense()], judge=judge, run=opened, batch_size=4)  # pyright: ignore
        verdicts = open_verdicts(opened)
        rejudge(opened, Scripted(fails="do 2"), verdicts)
        verdicts.close()
        opened.record(model="owner/name")
    return tmp_path / "run"


def logs_of(run, out, **options):
    paths = write_logs(run, out, **options)
    logs = [read_eval_log(str(path)) for path in paths]
    return {(log.eval.task, log.eval.metadata["defense"]): log for log in logs}


def test_a_log_for_each_suite_and_defense_with_answers_and_scores(run, tmp_path):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    logs = logs_of(run, tmp_path / "logs")
    assert set(logs) == {(s, d) for s in ("attack", "vqa") for d in ("none", "repair")}
    assert len(list_eval_logs(str(tmp_path / "logs"))) == 4
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        log = logs[row["suite"], row["defense"]]
        (sample,) = [s for s in log.samples if s.id == row["example"]]
        assert sample.input[0].content == row["prompt"]
        assert sample.metadata["goal"] == row["goal"] and sample.metadata["kind"] == row["kind"]
        if row["example"] == "e3":
            assert "too long" in sample.error.message and not sample.scores
            continue
        begun = ["assistant"] if row["example"] == "e1" and row["suite"] == "attack" else []
        assert [m.role for m in sample.messages] == ["user", *begun, "assistant"]
        assert sample.messages[-1].content == row["response"] == sample.output.completion
        assert sample.scores["rules"].metadata["outcome"] == row["outcome"]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    log = logs["attack", "none"]
    assert log.eval.model == "care/owner/name"
    assert log.eval.created == log.stats.started_at <= log.stats.completed_at


def test_a_begun_answer_is_a_message_of_the_log(run, tmp_path):
    for folder, images in ((tmp_path / "plain", False), (tmp_path / "shown", True)):
        write_logs(run, folder, images=images)
        found = [read_eval_log(each) for each in list_eval_logs(str(folder))]
        (log,) = [each for each in found if each.eval.task_display_name == "attack (none)"]
        turns = {sample.id: [turn.role for turn in sample.input] for sample in log.samples}
        assert turns["e1"] == ["user", "assistant"] and turns["e2"] == ["user"]


def test_rates_and_intervals_are_those_of_the_table(run, tmp_path):
    logs = logs_of(run, tmp_path / "logs")
    rules, scripted = logs["attack", "none"].results.scores
    assert (rules.name, scripted.name) == ("rules", "scripted")
    values = {name: metric.value for name, metric in rules.metrics.items()}
    bound, by_goal = wilson(7, 7), cluster_rate([1.0] * 7, [0, 1, 2, 0, 1, 2, 3])
    assert (values["asr"], values["wilson_low"], values["wilson_high"]) == (1, bound.low, 1)
    assert (values["goal_low"], values["goals"]) == (by_goal.low, 4)
    assert (values["harmful"], values["safe"]) == (1, 0)
    defended = logs["attack", "repair"].results.scores[0].metrics
    assert (defended["asr"].value, defended["refused"].value) == (0, 1)
    assert logs["attack", "repair"].samples[0].output.completion == REFUSAL
    assert logs["vqa", "none"].results.scores[0].metrics["accuracy"].value == 1


def test_an_answer_without_a_judgement_is_unscored(run, tmp_path):
    log = logs_of(run, tmp_path / "logs")["attack", "none"]
    unscored = [s.id for s in log.samples if s.scores and math.isnan(s.scores["scripted"].value)]
    assert unscored == ["e2", "e6"]
    assert "no reply" in log.samples[2].scores["scripted"].explanation
    score = log.results.scores[1]
    assert (score.scored_samples, score.unscored_samples) == (5, 2)
    assert score.metrics["goals"].value == 3


def test_pictures_and_references_come_back_from_the_suites(run, tmp_path):
    logs = logs_of(run, tmp_path / "logs", images=True)
    sample = logs["attack", "none"].samples[1]
    (shown,) = conversation(sample.input).load_images()
    assert sample.id == "e1" and np.array_equal(np.asarray(shown), np.asarray(picture(1)))
    assert logs["vqa", "repair"].samples[0].target == ["red", "crimson"]


def test_other_examples_under_the_same_id_are_refused(run, tmp_path):
    path = tmp_path / "attack.jsonl"
    path.write_text(path.read_text().replace("attack 5", "another 5"))
    with pytest.raises(DataError, match="'e5' of suite 'attack' isn't at hand as it was asked"):
        write_logs(run, tmp_path / "logs", images=True)
    assert logs_of(run, tmp_path / "logs")


def test_the_command_and_what_isnt_a_run(run, tmp_path, capsys):
    assert (
        cli.main(["export", str(run), "--format", "inspect", "--out", str(tmp_path / "logs")]) == 0
    )
    printed = capsys.readouterr().out.split()
    assert len(printed) == 4 and all(name.endswith(".eval") for name in printed)
    again = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert (
        cli.main(["export", str(run), "--format", "inspect", "--out", str(tmp_path / "logs")]) == 0
    )
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == again
    assert cli.main(["export", str(tmp_path / "nowhere"), "--format", "inspect"]) == 2
    (run / "manifest.json").write_text("[]")
    assert cli.main(["export", str(run), "--format", "inspect"]) == 2
    told = capsys.readouterr().err
    assert "There is no run in" in told and "isn't the manifest of a run" in told


def test_samples_tell_what_monitors_decided(run, tmp_path):
    path = run / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = {
        "source": "text alone",
        "alarms": [{"monitor": "request", "score": 1.5, "threshold": 0.5, "tokens": 0}],
        "lost_pictures": True,
    }
    [chosen] = [r for r in rows if r["example"] == "e1" and r["defense"] == "repair"]
    chosen |= told
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        (log.eval.task_args["defense"], sample.id): sample.metadata
        for log in map(read_eval_log, map(str, write_logs(run, tmp_path / "logs")))
        for sample in log.samples
    }
    assert told.items() <= found["repair", "e1"].items()
    assert "alarms" not in found["none", "e1"] and "source" not in found["repair", "e2"]
