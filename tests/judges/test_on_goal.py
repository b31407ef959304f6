"""Whether a response attempts its goal: closed cases and stems."""

import pytest

from care.judges.on_goal import content_stems, on_goal, stem
from kit.texts import cases

SAME_STEM = (
    "car cars, bomb bombing, rob robbing, bake baking, forge forged, kill killed, box boxes, "
    "body bodies, carry carried, knife knives, leaf leaves, start starting, watch watches"
)


@cases("judges/on_goal", "goal")
def test_a_response_attempts_its_goal_or_not(goal, text, label):
    assert on_goal(goal, text) is label


@pytest.mark.parametrize("pair", SAME_STEM.split(", "))
def test_stem_joins(pair):
    one, other = pair.split()
    assert stem(one) == stem(other)


def test_stem_keeps_short_words_apart():
    assert stem("string") == "string"
    assert stem("bus") == "bus"
    assert stem("glass") != stem("glad")
    assert content_stems("How to blow up a car") == ["blow", "car"]
