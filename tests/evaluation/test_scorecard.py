"""The scorecard: rates, comparisons over the whole table, non-inferiority, power, judges."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from care.errors import DataError, UsageError
from care.evaluation.scorecard import goal_of, scorecard
from care.evaluation.scores import PictureShare, Scorecard
from care.statistics.intervals import holm, mcnemar_exact, wilson
from care.statistics.judge_error import JudgeAccuracy
from care.statistics.paired import paired_difference
from care.typed import from_tree, to_tree
from kit.rows import row


def attack_rows(before: int, after: int, n: int = 60, suite: str = "pgd", each: int = 1):
    made = []
    for place in range(n):
        goal = f"goal {place // each}"
        made.append(row(suite, "none", place, "harmful" if place < before else "safe", goal=goal))
        made.append(row(suite, "care", place, "harmful" if place < after else "safe", goal=goal))
    return made


def utility_rows(lost: int, n: int = 60, suite: str = "vqa"):
    made = []
    for place in range(n):
        for defense in ("none", "care"):
            right = defense == "none" or place >= lost
            made.append(row(suite, defense, place, "safe", role="utility", correct=right))
    return made


def verdict(key: str, judge: str, outcome: str | None, **more: Any) -> dict[str, Any]:
    fields = {
        "key": f"{key}/{judge}/1",
        "row": key,
        "judge": judge,
        "attempt": 1,
        "outcome": outcome,
        "flagged": outcome == "harmful",
        "refused": False,
        "degenerate": False,
        "score": None,
        "label": "",
        "error": None,
    }
    return fields | more


def test_rates_and_comparisons_are_those_of_the_statistics():
    rows = [*attack_rows(45, 6), *utility_rows(0)]
    card = scorecard(rows)
    pgd = card.suites[0].defenses["none"]
    plain = wilson(45, 60)
    assert (pgd.rate, pgd.low, pgd.high) == (0.75, plain.low, plain.high)
    assert pgd.goals == 60 and pgd.by_goal.low == pytest.approx(plain.low, abs=0.03)
    attack, utility = card.comparisons
    before, after = np.arange(60) < 45, np.arange(60) < 6
    expected = paired_difference(before, after, [f"goal {i}" for i in range(60)]).interval
    assert attack.difference.rate == pytest.approx(-0.65)
    assert attack.difference.low == pytest.approx(expected.low, abs=0.02)
    assert attack.discordant == (39, 0) and attack.test == "McNemar, exact"
    assert attack.p == attack.p_mcnemar == mcnemar_exact(before, after).p
    assert utility.p == 1.0 and attack.non_inferior is None
    assert [attack.p_holm, utility.p_holm] == list(holm([attack.p, utility.p]))
    plain = json.loads(json.dumps(to_tree(card)))
    assert from_tree(Scorecard, plain) == card and to_tree(from_tree(Scorecard, plain)) == plain


def test_holm_is_over_every_comparison_of_the_table():
    rows = [*attack_rows(20, 9, suite="a"), *attack_rows(20, 9, suite="b")]
    more = [r | {"defense": "rival", "key": r["key"] + "/rival"} for r in rows
            if r["defense"] == "care"]  # fmt: skip
    two, four = scorecard(rows).comparisons, scorecard([*rows, *more]).comparisons
    assert len(two) == 2 and len(four) == 4
    assert four[0].p_holm == pytest.approx(4 * four[0].p)
    assert two[0].p_holm == pytest.approx(2 * two[0].p)


def test_examples_that_share_a_goal_are_not_independent():
    alone = scorecard(attack_rows(24, 12)).comparisons[0]
    shared = scorecard(attack_rows(24, 12, each=6)).comparisons[0]
    assert shared.goals == 10 and shared.test == "sign flips by goal"
    assert shared.p_mcnemar == alone.p_mcnemar and shared.p > 50 * shared.p_mcnemar
    wide = shared.difference.high - shared.difference.low
    assert wide > 1.5 * (alone.difference.high - alone.difference.low)


def test_questions_with_a_right_answer_are_each_their_own():
    rows = [r | {"goal": "name the object"} for r in utility_rows(3, n=40)]
    card = scorecard(rows)
    assert card.suites[0].defenses["care"].goals == 40
    assert card.comparisons[0].goals == 40 and card.comparisons[0].non_inferior
    chat = [r | {"correct": None} for r in rows]  # without references it is one request
    assert scorecard(chat).comparisons[0].goals == 1


def test_no_loss_has_to_be_shown():
    small = scorecard(utility_rows(0)).comparisons[0].non_inferior
    assert not small.shown  # 60 examples can't rule out a loss of 2 points
    large = scorecard(utility_rows(0, n=400)).comparisons[0].non_inferior
    assert large.shown
    assert scorecard(utility_rows(0), margin=0.1).comparisons[0].non_inferior.shown
    assert not scorecard(utility_rows(40, n=400)).comparisons[0].non_inferior.shown


def test_what_the_table_can_show_is_said():
    notes = scorecard([*attack_rows(45, 6), *utility_rows(2)]).power
    assert [note.split(":")[0] for note in notes] == ["pgd", "vqa"]
    assert "n = 60; two samples can tell 75.0 % from a fall to 50." in notes[0]
    assert "with 3.3 % of the examples changing" in notes[1]


def test_a_judge_of_ones_own_choice():
    rows = attack_rows(45, 6)
    flagged = {r["key"] for r in rows if int(r["example"][1:]) < 30}
    verdicts = [verdict(r["key"], "guard", "harmful" if r["key"] in flagged else "safe")
                for r in rows]  # fmt: skip
    verdicts[0] = verdict(rows[0]["key"], "guard", None, error="no reply", flagged=None)
    card = scorecard(rows, verdicts, primary="guard")
    assert card.judge == "guard"
    cell = card.suites[0].defenses["none"]
    assert (cell.n, cell.errors) == (59, 1) and cell.rate == pytest.approx(29 / 59)
    assert set(card.judges) == {"guard", "rules"}
    rules = next(e for e in card.judges["rules"] if e.defense == "none")
    assert rules.rate.rate == 0.75 and rules.errors == 0
    (agreement,) = card.agreement
    assert agreement.judges == ("guard", "rules") and agreement.n == 119
    assert agreement.kappa.low < agreement.kappa.rate < agreement.kappa.high
    assert card.comparisons[0].n == 59
    with pytest.raises(UsageError, match="no verdicts of 'oracle'"):
        scorecard(rows, verdicts, primary="oracle")


def test_rates_are_corrected_where_the_judges_errors_are_known():
    accuracy = {"rules": JudgeAccuracy(95, 5, 90, 10)}
    card = scorecard([*attack_rows(30, 6), *utility_rows(0)], accuracies=accuracy)
    cell = card.suites[0].defenses["none"]
    assert cell.corrected.rate == pytest.approx((0.5 + 0.9 - 1) / 0.85)
    assert cell.corrected.high - cell.corrected.low > cell.high - cell.low
    assert card.suites[1].defenses["none"].corrected is None
    useless = scorecard(attack_rows(30, 6), accuracies={"rules": JudgeAccuracy(3, 2, 3, 2)})
    assert "label more" in useless.suites[0].defenses["none"].corrected.error


def test_judges_of_pictures_stand_apart():
    rows = attack_rows(45, 6)
    verdicts = [verdict(r["key"], "shield", None, flagged=i % 4 == 0)
                for i, r in enumerate(rows)]  # fmt: skip
    card = scorecard(rows, verdicts)
    assert card.pictures == (PictureShare("shield", "pgd", 120, 0.25, 0),)
    assert list(card.judges) == ["rules"] and card.agreement == ()


def test_what_failed_is_in_no_rate():
    rows = attack_rows(45, 6)
    rows[0] |= {"error": "DataError: image", "outcome": None, "response": None}
    card = scorecard(rows)
    cell = card.suites[0].defenses["none"]
    assert (cell.errors, cell.n) == (1, 59) and card.comparisons[0].n == 59
    lost = [r | {"error": "x", "outcome": None} for r in attack_rows(3, 2, suite="lost")]
    card = scorecard([*rows, *lost])
    assert card.suites[1].defenses["none"].rate is None
    assert card.comparisons[1].difference is None
    assert len(card.power) == 1


def test_a_single_goal_has_no_interval():
    rows = [r | {"goal": "the same"} for r in attack_rows(30, 6)]
    card = scorecard(rows)
    assert card.suites[0].defenses["none"].by_goal is None
    assert card.comparisons[0].p is None


def test_goals_are_compared_without_case_and_spacing():
    assert goal_of({"goal": " Pick  a LOCK", "prompt": "x"}) == "pick a lock"
    assert goal_of({"goal": "", "prompt": "Ask"}) == "ask"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("low", None, "must hold all of rate, low and high"),
        ("low", 0.9, "outside its interval"),
        ("corrected", {"rate": 0.5}, "must hold either rate, low and high, or an error"),
        ("corrected", {"rate": 0.5, "low": 0.6, "high": 0.7}, "outside its interval"),
    ],
)
def test_a_damaged_scorecard_is_refused(field: str, value: Any, told: str):
    tree = to_tree(scorecard(attack_rows(45, 6)))
    tree["suites"][0]["defenses"]["none"][field] = value
    with pytest.raises(DataError, match=told):
        from_tree(Scorecard, tree)
