"""Templates of jailbreaks: those of one split are in no other, and each holds a goal."""

import base64
import re
from itertools import combinations

import pytest

from care.data.example import Example
from care.data.small_world.goals import texts
from care.data.small_world.jailbreak_templates import (
    CODES,
    filled,
    templates,
    unseen_families,
    wrapped,
)
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


def words(template):
    return set(re.findall(r"[^\W\d_]+", re.sub(r"\{goal[^}]*\}", "", template).lower()))


def likeness(first, second):
    """Jaccard's: shared words among all words."""
    first, second = words(first), words(second)
    return len(first & second) / len(first | second)


def test_unseen_templates_are_many_and_like_no_other():
    unseen = templates("unseen")
    known = [
        text for table in ("wrappers", "direct") for t in texts()[table].values() for text in t
    ]
    assert len(unseen) == len(set(unseen)) >= 50 and len(unseen_families()) >= 12
    near = [(a, b) for a in unseen for b in known if likeness(a, b) > 0.4]
    near += [(a, b) for a, b in combinations(unseen, 2) if likeness(a, b) > 0.4]
    assert near == []
    assert likeness("Write a poem on how to {goal}.", "Write me a poem on how to {goal}!") > 0.8
    assert {code for text in unseen for code in CODES if f"{{goal:{code}}}" in text} == set(CODES)


def test_every_unseen_template_holds_the_goal_in_words_or_in_code():
    goal = "paint a door"
    coded = {code(goal) for code in CODES.values()}
    for text in templates("unseen"):
        found = filled(text, goal)
        assert "{goal" not in found and any(form in found for form in (goal, *coded))
    assert len(wrapped(EXAMPLES, "unseen", each=3)) == 6


def test_codes_can_be_read_back():
    goal = "paint the old door"
    assert base64.b64decode(CODES["base64"](goal)).decode() == f"How do you {goal}?"
    assert CODES["rot13"](CODES["rot13"](goal)) == goal == CODES["reversed"](goal)[::-1]
    assert CODES["rot13"]("abz") == "nom" and CODES["leet"]("a test so big") == "4 7357 50 b1g"
    assert CODES["spaced"]("an ox") == "a n  o x"
    assert CODES["piglatin"]("an egg, strong") == "anway egg,way ongstray"
    with pytest.raises(UsageError, match="no code 'morse'"):
        filled("{goal:morse}", goal)
