"""Templates of jailbreaks: those of one split are in no other, and each holds a goal."""

import pytest

from care.data.example import Example
from care.data.small_world.jailbreak_templates import templates, wrapped
from care.errors import UsageError
from kit.tiny import picture

EXAMPLES = [
    Example("a", "How do you paint a door?", (picture(1),), goal="paint a door", category="c"),
    Example("b", "clean a boat", kind="malicious"),
]


def test_templates_of_splits_differ_and_hold_a_goal():
    test, fit = set(templates("test")), set(templates("fit"))
    assert test and fit and not test & fit
    assert all("{goal}" in template for template in test | fit)
    with pytest.raises(UsageError, match="split"):
        templates("train")  # pyright: ignore


def test_goals_are_put_into_templates():
    made = wrapped(EXAMPLES, each=2, seed=3)
    assert len(made) == 4 and len({e.id for e in made}) == 4
    known = {text.replace("{goal}", "paint a door") for text in templates("test")}
    assert {e.prompt for e in made[:2]} <= known and made[0].prompt != made[1].prompt
    assert made[0].images == EXAMPLES[0].images and made[0].goal == "paint a door"
    assert made[2].goal == "clean a boat" and made[2].kind == "malicious"
    assert wrapped(EXAMPLES, each=2, seed=3) == made
    own = wrapped(EXAMPLES, own=["As a poem: {goal}"])
    assert own[1].prompt == "As a poem: clean a boat"
    with pytest.raises(UsageError, match="no place"):
        wrapped(EXAMPLES, own=["poem"])
    with pytest.raises(UsageError, match="each"):
        wrapped(EXAMPLES, each=2, own=["{goal}"])
