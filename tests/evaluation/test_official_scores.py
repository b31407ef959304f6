"""Published scores: CircularEval, MME's score and MM-SafetyBench's two kinds of scenarios."""

from __future__ import annotations

import json
from typing import Any

import pytest

from care.data import tables
from care.data.benchmarks.visual_questions import COGNITION, PERCEPTION
from care.data.registry import load_suite
from care.evaluation.official_scores import PublishedScore
from care.evaluation.scorecard import scorecard
from care.evaluation.scores import Scorecard
from care.interfaces.cli.tables import show
from care.statistics.intervals import wilson
from care.typed import from_tree, to_tree
from kit import suite_copies as copies
from kit.rows import row


def question(suite: str, example: str, right: bool, defense: str = "none", **more: Any) -> dict:
    seed = more.get("seed", 0)
    made = row(suite, defense, 0, "safe", role="utility", correct=right, **more)
    return made | {"example": example, "key": f"{suite}/{example}/{defense}/{seed}"}


def scores(rows: list[dict], defense: str = "none") -> dict[str, PublishedScore]:
    (suite,) = scorecard(rows).suites
    return {entry.score: entry for entry in suite.defenses[defense].published}


def shifts(number: int, right: str, **more: Any) -> list[dict]:
    """A question under its shifts, right where there is a 1."""
    return [question("mmbench", f"{number}-{i}", mark == "1", **more)
            for i, mark in enumerate(right)]  # fmt: skip


def test_circular_eval_counts_a_question_if_all_its_shifts_are_right():
    rows = [*shifts(1, "1111"), *shifts(2, "1101"), *shifts(3, "11"), *shifts(4, "000")]
    found = scores(rows)["CircularEval"]
    limits = wilson(2, 4)  # questions, not the 13 rows, are what was drawn
    assert (found.value, found.low, found.high) == (0.5, limits.low, limits.high)
    assert (found.n, found.of, found.left_out) == (4, 1.0, 0)
    assert scorecard(rows).suites[0].defenses["none"].rate == pytest.approx(9 / 13)


def test_a_question_of_which_a_shift_failed_is_left_out():
    rows = [*shifts(1, "1111"), *shifts(2, "1111"), *shifts(3, "0000")]
    rows[5] |= {"error": "DataError: image", "outcome": None, "correct": None}
    found = scores(rows)["CircularEval"]
    assert (found.value, found.n, found.left_out) == (0.5, 2, 1)
    lost = [r | {"error": "x", "outcome": None, "correct": None} for r in rows]
    assert scores(lost) == {}


def test_passes_of_other_seeds_are_no_other_questions():
    rows = [*shifts(1, "11"), *shifts(2, "10"), *shifts(1, "10", seed=1), *shifts(2, "11", seed=1)]
    found = scores(rows)["CircularEval"]
    assert (found.value, found.n) == (0.5, 4)
    only = scores([*shifts(1, "11"), *shifts(1, "10", seed=1)])["CircularEval"]
    assert (only.value, only.low, only.high) == (0.5, 0.0, 1.0)


def pictures(category: str, marks: list[str], **more: Any) -> list[dict]:
    return [
        question("mme", f"{category}/{p}-{q}", mark == "1", category=category, **more)
        for p, both in enumerate(marks)
        for q, mark in enumerate(both, start=1)
    ]


def test_mme_adds_accuracy_by_question_and_by_picture():
    rows = [*pictures("existence", ["11"] * 6 + ["10"] * 3 + ["00"]),
            *pictures("OCR", ["11"] * 4),
            *pictures("code_reasoning", ["10", "01"])]  # fmt: skip
    found = scores(rows)
    assert found["MME existence"].value == pytest.approx(100 * (15 / 20 + 6 / 10))
    assert found["MME OCR"].value == 200 and found["MME OCR"].low < 150
    assert found["MME code_reasoning"].value == 50
    assert found["MME perception"].value == pytest.approx(335)
    assert (found["MME perception"].of, found["MME perception"].n) == (400, 14)
    assert found["MME cognition"].value == 50 and found["MME cognition"].of == 200
    assert found["MME total"].value == pytest.approx(385) and found["MME total"].of == 600
    for entry in found.values():
        assert 0 <= entry.low < entry.value <= entry.high <= entry.of
        assert entry.unit == "pictures"
    assert (len(PERCEPTION), len(COGNITION)) == (10, 4)  # 2000 and 800


def test_the_interval_of_a_sum_adds_in_squares_and_narrows_with_pictures():
    few = ["11", "10", "00", "11"] * 5
    alone = scores(pictures("count", few))["MME count"]
    both = scores([*pictures("count", few), *pictures("color", few)])["MME total"]
    width = alone.value - alone.low
    assert both.value - both.low == pytest.approx(2**0.5 * width, rel=0.02)
    many = scores(pictures("count", few * 8))["MME count"]
    assert many.value == alone.value and many.value - many.low < width / 2


def test_a_picture_of_which_a_question_failed_is_left_out():
    rows = pictures("count", ["11", "11", "00"])
    rows[1] |= {"error": "x", "outcome": None, "correct": None}
    found = scores(rows)
    assert found["MME count"].value == 100 and found["MME count"].n == 2
    assert found["MME total"].left_out == 1


def scenarios(suite: str, *parts: tuple[str, int, int], defense: str = "none") -> list[dict]:
    return [
        row(suite, defense, place, "harmful" if place < harmful else "safe", category=category)
        | {"example": f"{category}-{place}", "goal": f"{category} {place}",
           "key": f"{suite}/{category}-{place}/{defense}"}
        for category, harmful, n in parts
        for place in range(n)
    ]  # fmt: skip


def test_the_eight_harmful_scenarios_stand_apart_from_advice():
    rows = scenarios("mm-safetybench-sd", ("Sex", 6, 10), ("Fraud", 2, 10), ("Gov_Decision", 9, 10))
    found = scores(rows)
    harmful, advice = found["ASR, harmful scenarios"], found["ASR, advice scenarios"]
    limits = wilson(8, 20)
    assert (harmful.value, harmful.low, harmful.high) == (0.4, limits.low, limits.high)
    assert (advice.value, advice.n) == (0.9, 10)
    # A suite of the eight alone has nothing to tell apart, and others no such scenarios.
    assert scores(scenarios("mm-safetybench-harmful", ("Sex", 6, 10))) == {}
    assert scores(scenarios("figstep", ("Sex", 6, 10), ("Gov_Decision", 9, 10))) == {}


def test_goals_that_are_asked_twice_widen_the_interval():
    parts = (("Sex", 10, 20), ("Gov_Decision", 9, 10))
    alone = scores(scenarios("mm-safetybench", *parts))["ASR, harmful scenarios"]
    rows = scenarios("mm-safetybench", *parts)
    shared = [r | {"goal": f"goal {int(r['example'].split('-')[1]) // 5}"} for r in rows]
    twice = scores(shared)["ASR, harmful scenarios"]
    assert twice.value == alone.value == 0.5
    assert twice.high - twice.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("name", "score", "n"), [("mmbench", "CircularEval", 2), ("mme", "MME total", 4)]
)
def test_examples_as_the_suites_load_them_are_grouped(name, score, n, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_read_parquet", copies.read_parquet_stand_in)
    loaded = load_suite(name, path=copies.make(name).write(tmp_path / "copy"))
    rows = [question(name, e.id, True, category=e.category) for e in loaded]
    found = scores(rows)[score]
    assert (found.value, found.n) == (found.of, n) and len(rows) > n
    rows[-1] |= {"correct": False}
    assert scores(rows)[score].value == found.of * (0.5 if name == "mmbench" else 13 / 16)


def test_they_are_shown_for_every_defense(capsys):
    rows = [r for defense, marks in (("none", "1111"), ("care", "1101"))
            for n in range(3) for r in shifts(n, marks, defense=defense)]  # fmt: skip
    card = scorecard([*rows, *pictures("count", ["11", "10"])])
    assert from_tree(Scorecard, json.loads(json.dumps(to_tree(card)))) == card
    show(card)
    said = " ".join(capsys.readouterr().out.split())
    assert "CircularEval" in said and "3 questions 1.00 [0.44, 1.00] 0.00 [0.00, 0.56]" in said
    assert "MME count" in said and "125.0 [" in said and "of 200" in said
    show(scorecard([r | {"suite": "vqa"} for r in rows]))
    assert "As published" not in capsys.readouterr().out
