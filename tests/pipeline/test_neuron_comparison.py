"""Neurons and subspaces by judged answers: figures against counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from care.data.example import Example, Suite
from care.defenses.neuron_suppression import NeuronSuppression
from care.diagnosis.neurons.results import JudgedSuppression
from care.diagnosis.neurons.suppression_search import BEYOND
from care.errors import DataError
from care.evaluation.results import Results
from care.models.sites import N_CLASSES
from care.pipeline.neuron_comparison import compare_answers, remaining
from care.typed import from_tree, to_tree

REPAIR = NeuronSuppression(((1, 3), (2, 7)), ((0.0,) * N_CLASSES,) * 2, (4, 64))
DEFENSES = ("none", "neurons", "subspace")


def row(suite, role, place, defense, outcome, error=None):
    return {
        "key": f"{suite}/{place}/{defense}",
        "suite": suite,
        "role": role,
        "example": str(place),
        "goal": f"goal {place // 2}",
        "kind": "malicious" if role == "attack" else "benign",
        "defense": defense,
        "seed": 0,
        "outcome": outcome,
        "correct": None,
        "error": error,
    }


def table(harmful, safe=(4, 3, 4)):
    """Two attack suites of 6 and a utility suite of 4, with counts under each defense."""
    rows = []
    for defense, many, fine in zip(DEFENSES, harmful, safe, strict=True):
        for suite in ("first", "second"):
            rows += [
                row(suite, "attack", k, defense, "harmful" if k < many else "refused")
                for k in range(6)
            ]
        rows += [
            row("plain", "utility", k, defense, "safe" if k < fine else "degenerate")
            for k in range(4)
        ]
    return rows


def test_rates_differences_and_costs():
    found = compare_answers(Results(table((5, 3, 1))), REPAIR)
    assert found.neurons == 2 and found.within_margin
    assert [item.edit for item in found.edits] == list(DEFENSES)
    assert [item.asr.rate for item in found.edits] == pytest.approx([5 / 6, 3 / 6, 1 / 6])
    assert [item.utility for item in found.edits] == [1.0, 0.75, 1.0]
    assert [item.answered for item in found.edits] == [None] * 3
    assert [item.degenerate for item in found.edits] == pytest.approx([0, 0.25 / 3, 0])
    gap = found.difference
    assert gap.rate == pytest.approx(2 / 6) and gap.n == 12
    # Goals are resampled: of the three, one has no difference, one and a half answers do.
    assert gap.low == pytest.approx(0.0) and gap.high > gap.rate
    assert from_tree(JudgedSuppression, to_tree(found)) == found


def test_only_attacks_answered_under_all_three_are_compared():
    rows = table((6, 6, 0))
    for item in rows:
        if item["defense"] == "subspace" and item["role"] == "attack" and int(item["example"]) < 2:
            item |= {"error": "broken", "outcome": None}
    found = compare_answers(Results(rows), REPAIR)
    assert found.difference.n == 8
    assert [item.asr.n for item in found.edits] == [8, 8, 8]
    assert found.difference.rate == 1.0


def test_a_set_beyond_the_margin_says_so():
    beyond = REPAIR.only(REPAIR.neurons, BEYOND)
    assert not compare_answers(Results(table((5, 3, 1))), beyond).within_margin


def test_one_goal_is_too_few():
    rows = [item | {"goal": "the same"} for item in table((5, 3, 1))]
    with pytest.raises(DataError, match="at least 2 goals, got 12 with 1"):
        compare_answers(Results(rows), REPAIR)


def test_requests_that_were_used_are_left_out():
    examples = [Example(str(k), f"request {k}") for k in range(20)]
    suites = [
        Suite("long", "attack", tuple(examples[:16])),
        Suite("used", "utility", tuple(examples[16:])),
    ]
    used = [*examples[:16:2], *examples[16:]]
    (found,) = remaining(suites, used, 4)
    assert found.name == found.role == "attack"
    places = [int(example.id.removeprefix("long/")) for example in found]
    assert len(places) == 4 and all(place % 2 for place in places)
    assert np.ptp(np.diff(places)) == 0  # evenly spaced


def test_requests_of_one_role_are_asked_together():
    suites = [
        Suite(name, role, tuple(Example(str(k), f"{name} {k}") for k in range(5)))
        for name, role in (("a", "attack"), ("plain", "utility"), ("b", "attack"))
    ]
    attack, utility = remaining(suites, [], 2)
    assert [e.id for e in attack] == ["a/0", "a/2", "b/0", "b/2"]
    assert (utility.name, utility.role, len(utility)) == ("utility", "utility", 2)
