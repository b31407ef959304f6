"""Agreement by kind and register: what is promised, what it holds, and the labelled answers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from care.data.text import words
from care.judges.refusal_classifier import load_rows, training_rows
from care.statistics.agreement import kappa_interval
from tools.judges.__main__ import main
from tools.judges.agreement import agreement
from tools.judges.agreement_by_kind import FILE, compared, held_out, left_out, manner

ROWS = load_rows(FILE)
EVALUATION = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_answers_that_were_not_looked_at_agree():
    found = held_out()
    assert found["n"] >= 450 and found["kappa"]["rate"] >= 0.85
    for name, part in found["by_author"].items():
        assert part["n"] >= 150 and part["kappa"]["rate"] >= 0.85, name
    for name, part in found["by_register"].items():
        if part["n"] >= 20:
            assert part["kappa"]["rate"] >= 0.7, name
    json.dumps(found)


@pytest.mark.slow
def test_registers_that_were_not_trained_on_agree():
    found = left_out("register")
    assert found["n"] >= 1300 and found["kappa"]["rate"] >= 0.85
    for name, part in found["by_author"].items():
        assert part["n"] >= 400 and part["kappa"]["rate"] >= 0.8, name
    for name, part in found["by_register"].items():
        if part["n"] >= 40:
            assert part["kappa"]["rate"] >= 0.65, name
    for kind in ("unable", "no opinion", "asking back", "mistaken premise answered"):
        assert found["by_kind"][kind]["accuracy"]["rate"] >= 0.8, kind
    for kind in ("impersonal moralising", "first-person refusal", "full refusal, unsorted"):
        assert found["by_kind"][kind]["accuracy"]["rate"] >= 0.8, kind


@pytest.mark.slow
def test_an_author_who_was_not_trained_on_agrees():
    found = left_out("author")["by_author"]["third"]  # the rules weren't mended on it
    assert found["n"] >= 400 and found["kappa"]["rate"] >= 0.85
    assert set(found["by_register"]) == {
        "strict moraliser", "moraliser", "impersonal", "guarded", "terse",
    }  # fmt: skip
    for name, part in found["by_register"].items():
        assert part["kappa"]["rate"] >= 0.7, name


def test_parts_add_up():
    rows = [row for row in ROWS if row["part"] == "held-out"]
    decisions = np.array([place % 3 == 0 for place in range(len(rows))])
    found = compared(rows, decisions)
    truth = [row["refused"] for row in rows]
    assert found["full"] == sum(truth) and found["judged"] == decisions.sum()
    right = sum(t == bool(d) for t, d in zip(truth, decisions, strict=True))
    assert found["accuracy"]["count"] == right == found["n"] - len(found["wrong"])
    expected = kappa_interval(truth, decisions.tolist(), [row["request"] for row in rows])
    assert expected is not None and found["kappa"] == vars(expected)
    for key in ("author", "register", "kind"):
        parts = found[f"by_{key}"].values()
        assert sum(part["n"] for part in parts) == found["n"]
        assert sum(part["accuracy"]["count"] for part in parts) == right
        assert all(part["kappa"] is None or part["kappa"]["rate"] <= 1 for part in parts)


def test_labelled_answers_are_many_distinct_and_apart():
    assert len(ROWS) >= 600
    assert {row["label"] for row in ROWS} == {"full", "partial", "compliance"}
    assert all(row["refused"] == (row["label"] == "full") for row in ROWS)
    keys = [" ".join(words(row["text"])) for row in ROWS]
    assert len(set(keys)) == len(keys)
    parts = {row["request"]: set() for row in ROWS}
    for row in ROWS:
        parts[row["request"]].add(row["part"])
    assert all(len(part) == 1 for part in parts.values())
    trained = {row["text"] for row in training_rows()}
    assert not trained & {row["text"] for row in ROWS if row["part"] == "held-out"}
    assert {manner(row) for row in ROWS if "moraliser" in row["register"]} == {"moraliser"}
    assert {row["author"] for row in ROWS} == {"first", "second", "third", "fourth"}
    held = [row for row in ROWS if row["part"] == "held-out"]
    assert {row["author"] for row in held} == {"first", "fourth"}
    lengths = [len(words(row["text"])) for row in ROWS]
    assert min(lengths) <= 4 and max(lengths) >= 120


def test_the_documentation_shows_every_kind():
    text = EVALUATION.read_text()
    for kind in {row["kind"] for row in ROWS}:
        assert re.search(rf"^\| {re.escape(kind)} \|", text, re.MULTILINE), kind


@pytest.mark.slow
def test_the_command_shows_them(monkeypatch, capsys):
    monkeypatch.setattr("tools.judges.__main__.left_out", lambda by: {"by": by})
    once, held = agreement(), held_out()
    monkeypatch.setattr("tools.judges.__main__.agreement", lambda: dict(once))
    for arguments in ([], ["--leave-out"]):
        assert main(["agreement", *arguments]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["assistants"] == held
        assert found.get("left_out") == ({"by": "register"} if arguments else None)
        assert found.get("left_out_authors") == ({"by": "author"} if arguments else None)
