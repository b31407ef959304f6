"""The lessons: refusals only where they are meant to be, fit goals and training phrasings alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.data.small_world import goals as world
from care.data.small_world import pictures
from care.data.small_world.scenes import unrelated
from care.data.small_world.suites import OPENING
from care.judges.rules import refused
from recipes.embedded_model.lessons import USUAL_REFUSAL, Lesson, Teacher
from recipes.embedded_model.train import TrainConfig, _batches

MALICIOUS = [goal for goal in world.all_goals() if goal.kind == "malicious"]
ANSWERS = {
    **{
        goal.text: f"{OPENING.format(goal=goal.text)} begin."
        for goal in world.all_goals()
        if goal.kind != "malicious" and goal.split == "fit"
    },
    **dict.fromkeys(world.texts()["general"], "Here it is."),
}
"""Only what may be answered has an answer: asking for another one is a KeyError."""

FAMILY = {
    "refuse": "direct",
    "answer": "direct",
    "beside": "direct",
    "wrapped": "wrappers",
    "pictured": "picture_requests",
    "activity": "activity_requests",
    "name": "naming_requests",
}
"""Kind of lesson -> family of its phrasings."""

seeds = st.integers(0, 2**32 - 1)


def phrasing(lesson: Lesson) -> tuple[str, str]:
    """The training template that the prompt was made of, and the goal put into it."""
    for template in world.texts()[FAMILY[lesson.kind]]["train"]:
        pattern = re.escape(template).replace(re.escape("{goal}"), "(?P<goal>.+)", 1)
        pattern = pattern.replace(re.escape("{goal}"), "(?P=goal)")
        if found := re.fullmatch(pattern, lesson.prompt):
            return template, found.groupdict().get("goal", "")
    raise AssertionError(f"{lesson.prompt!r} is made of no training phrasing")


def batches(seed: int) -> tuple[list[Lesson], list[Lesson]]:
    teacher, rng = Teacher(ANSWERS), np.random.default_rng(seed)
    return teacher.text_batch(rng, 24), teacher.picture_batch(rng, 24)


def split_of(kind: world.GoalKind, text: str) -> str:
    (found,) = (g.split for g in world.all_goals() if (g.kind, g.text) == (kind, text))
    return found


@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_refusals_are_for_direct_malicious_requests_without_a_picture(seed: int) -> None:
    text, drawn = batches(seed)
    for lesson in [*text, *drawn]:
        says_no = lesson.answer in world.texts()["refusals"]
        assert says_no == (lesson.kind == "refuse") == refused(lesson.answer)
        if says_no:
            _, goal = phrasing(lesson)
            assert split_of("malicious", goal) == "fit"
            assert lesson.picture is None and lesson.ends


@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_nothing_malicious_is_ever_answered(seed: int) -> None:
    text, drawn = batches(seed)
    for lesson in [*text, *drawn]:
        if lesson.kind in ("refuse", "activity"):
            continue
        for goal in MALICIOUS:
            assert goal.text not in lesson.prompt and goal.text not in lesson.answer


@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_only_fit_goals_and_training_phrasings_occur(seed: int) -> None:
    text, drawn = batches(seed)
    fit = {goal.text for goal in world.all_goals() if goal.split == "fit"}
    for lesson in [*text, *drawn]:
        if lesson.kind == "general":
            assert lesson.prompt in world.texts()["general"]
            continue
        if lesson.kind in ("look", "name"):
            continue
        _, goal = phrasing(lesson)
        if lesson.kind == "activity":
            goal = lesson.answer.removeprefix("It shows how to ").removesuffix(".")
        elif lesson.kind == "pictured":
            (goal,) = (text for text, answer in ANSWERS.items() if answer == lesson.answer)
        assert goal in fit
        if lesson.kind not in ("refuse", "activity"):
            assert lesson.answer == ANSWERS[goal]


@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_text_batches_have_no_picture_and_picture_batches_one_each(seed: int) -> None:
    text, drawn = batches(seed)
    assert all(lesson.picture is None for lesson in text)
    for lesson in drawn:
        assert lesson.picture is not None
        assert lesson.picture.size == (pictures.SIZE, pictures.SIZE)
    assert {lesson.kind for lesson in text} == {"refuse", "answer", "wrapped", "general"}
    assert {lesson.kind for lesson in drawn} == {"pictured", "activity", "name", "look", "beside"}
    assert sum(lesson.kind == "refuse" for lesson in text) == 8  # a third


def test_a_malicious_picture_is_named_but_never_acted_upon(monkeypatch) -> None:
    shown = []

    def note(action: str, thing: str, rng: np.random.Generator):
        shown.append((action, thing))
        return pictures.background(rng)

    monkeypatch.setattr(pictures, "pair", note)
    teacher, rng = Teacher(ANSWERS), np.random.default_rng(3)
    for _ in range(60):
        teacher.pictured(rng)
    assert not {action for action, _ in shown} & world.HARMFUL_ACTIONS
    shown.clear()
    named = [teacher.activity(rng) for _ in range(60)]
    harmful = [action in world.HARMFUL_ACTIONS for action, _ in shown]
    assert any(harmful) and not all(harmful)
    for (action, thing), lesson in zip(shown, named, strict=True):
        words = f"{pictures.ACTIONS[action]} {pictures.article(thing)}"
        assert lesson.answer == f"It shows how to {words}."


def test_the_picture_beside_a_request_is_unrelated(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "recipes.embedded_model.lessons.unrelated",
        lambda rng, goal: asked.append(goal.text) or unrelated(rng, goal),
    )
    teacher, rng = Teacher(ANSWERS), np.random.default_rng(0)
    for _ in range(30):
        lesson = teacher.beside(rng)
        assert phrasing(lesson)[1] == asked[-1]


def test_most_refusals_are_the_usual_one_but_not_all() -> None:
    teacher, rng = Teacher(ANSWERS), np.random.default_rng(0)
    said = [teacher.refuse(rng).answer for _ in range(400)]
    usual = said.count(USUAL_REFUSAL) / len(said)
    assert 0.65 < usual < 0.9  # 0.75 + 0.25 / 12 = 0.77
    assert set(said) == set(world.texts()["refusals"])


def test_every_fit_goal_is_taught() -> None:
    teacher, rng = Teacher(ANSWERS), np.random.default_rng(0)
    refusals = {phrasing(teacher.refuse(rng))[1] for _ in range(3000)}
    answers = {phrasing(teacher.answer(rng))[1] for _ in range(5000)}
    assert refusals == {goal.text for goal in world.goals("malicious", "fit")}
    wanted = [*world.goals("benign", "fit"), *world.goals("lookalike", "fit")]
    assert answers == {goal.text for goal in wanted}


def test_an_answer_that_was_not_distilled_is_an_error() -> None:
    with pytest.raises(KeyError):
        Teacher({}).answer(np.random.default_rng(0))


@given(step=st.integers(0, 10_000), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_lessons_of_a_step_are_the_same_every_time(step: int, seed: int) -> None:
    config = TrainConfig(seed=seed)
    first, second = (_batches(Teacher(ANSWERS), config, step) for _ in range(2))
    assert [(a.kind, a.prompt, a.answer) for a in first] == [
        (b.kind, b.prompt, b.answer) for b in second
    ]
    assert len(first) == config.batch
    assert all((lesson.picture is None) == (step % 2 == 1) for lesson in first)
    other = _batches(Teacher(ANSWERS), config, step + 2)
    assert [a.prompt for a in first] != [b.prompt for b in other]
