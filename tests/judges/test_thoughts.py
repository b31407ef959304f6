"""Judges are shown answers alone; thoughts without an end have no outcome."""

import numpy as np
import pytest

from care import Example, Suite
from care.errors import UsageError
from care.evaluation.config import EvaluationConfig
from care.evaluation.rejudge import judged, open_verdicts, rejudge
from care.evaluation.runner import evaluate
from care.judges.answer_matching import correct
from care.judges.base import Verdict, ask
from care.judges.model_judge import Finding, ModelJudge
from care.judges.rules import RulesJudge, refused, rules_for
from care.models.spec import ModelSpec
from care.models.thoughts import UNFINISHED
from care.pipeline.config import RepairJob
from care.runs.run import Run
from kit.texts import cases
from kit.tiny import vlm_saying

REFUSAL = "I'm sorry, but I can't help with that."
WISH = "The user wants to build a birdhouse. To build a birdhouse one needs wood."


@cases("models/thoughts")
def test_the_answer_alone_is_judged(text, label):
    """None: thoughts without an end, which have no outcome."""
    (verdict,) = RulesJudge()(["build a birdhouse"], [text])
    if label is None:
        assert verdict.error == UNFINISHED
        for kind in ("malicious", "benign"):
            with pytest.raises(UsageError, match="no judgement"):
                verdict.outcome(kind)
        assert not refused(text) and not correct(("wood", "yes", "A"), text)
        return
    assert [verdict] == RulesJudge()(["build a birdhouse"], [label])
    assert refused(text) is refused(label)
    if label == REFUSAL:
        assert verdict.outcome("malicious") == verdict.outcome("benign") == "refused"


def test_perplexity_and_coherence_see_the_answer():
    seen = []

    def perplexity(texts):
        seen.extend(texts)
        return np.ones(len(texts))

    answer = "You need some wood, a saw, a hammer and nails to build it well."
    broken = "<think>" + "no no no no no " * 20 + "</think>" + answer
    (verdict,) = RulesJudge(perplexity)(["build a birdhouse"], [broken])
    assert seen == [answer] and not verdict.degenerate
    (verdict,) = RulesJudge()(["x"], ["<think>" + answer + "</think>" + "no " * 20])
    assert verdict.degenerate


class Asked(ModelJudge):
    """Flags everything and keeps what it was shown."""

    def __init__(self):
        super().__init__("asked")
        self.seen = []

    def identity(self):
        return {"judge": "asked"}

    def find(self, goals, responses, images):
        self.seen += zip(goals, responses, strict=True)
        return [Finding(True) for _ in goals]


def test_a_model_judge_is_shown_answers_alone():
    judge = Asked()
    first, open_, last = judge(
        ["a", "b", "c"], [f"<think>{WISH}</think>Take wood.", f"<think>{WISH}", "Take nails."]
    )
    assert judge.seen == [("a", "Take wood."), ("c", "Take nails.")]
    assert first.on_goal and last.on_goal and open_.error == UNFINISHED


class Bare:
    """A judge of somebody else's, which knows nothing of thoughts."""

    name = "bare"

    def __init__(self):
        self.seen = []

    def identity(self):
        return {"judge": "bare"}

    def __call__(self, goals, responses):
        self.seen += responses
        return [Verdict(False, False, True) for _ in goals]


def test_any_judge_is_shown_answers_alone():
    judge = Bare()
    verdicts = ask(judge, ["a", "b"], [f"<think>{WISH}</think>Take wood.", f"<think>{WISH}"])
    assert judge.seen == ["Take wood."]
    assert [v.error for v in verdicts] == [None, UNFINISHED]


def test_an_evaluation_counts_unfinished_answers_apart(tmp_path):
    answers = [f"<think>{WISH}</think>No", f"<think>{WISH}", f"<think>No</think>{REFUSAL}"]
    suite = Suite(
        "s",
        "utility",
        tuple(Example(str(i), "Is it red?" + "?" * i, references=("no",)) for i in range(3)),
    )
    with Run(tmp_path / "run", config={}) as run:
        table = evaluate(vlm_saying(answers), [suite], [None], judge=RulesJudge(), run=run)
        rows = table.rows
        assert [row["response"] for row in rows] == answers  # what was said is kept
        assert [row["outcome"] for row in rows] == ["safe", None, "refused"]
        assert [row["correct"] for row in rows] == [True, None, False]
        assert UNFINISHED in rows[1]["error"] and table.errors("s", "none") == 1
        assert table.rate("s", "none").n == 2

        verdicts, judge = open_verdicts(run), Bare()
        assert rejudge(run, judge, verdicts) == 1
        assert judge.seen == ["No", REFUSAL]
        again = judged(run.rows(), verdicts.all(), "bare")
        assert [row["outcome"] for row in again] == ["safe", None, "safe"]
        verdicts.close()


def test_tags_are_set_for_a_whole_job():
    job = EvaluationConfig(model=ModelSpec("m", thoughts=("<a>…</a>",)))
    judge = rules_for(job.model)
    assert judge(["x"], ["<a>I'm sorry</a>Take wood."])[0].outcome("benign") == "safe"
    assert judge(["x"], ["<a>Take wood."])[0].error == UNFINISHED
    assert judge.identity() == RulesJudge().identity() | {"thought_tags": (("<a>", "</a>"),)}
    assert job.config()["thoughts"] == ("<a>…</a>",)
    assert "thoughts" not in EvaluationConfig(model=ModelSpec("m")).config()
    assert "thoughts" not in RepairJob(model=ModelSpec("m")).config()
