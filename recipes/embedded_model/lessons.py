"""What the embedded model is taught: one seeded batch of (prompt, picture, answer) per step.

Refusals are taught for direct malicious requests without a picture, and nowhere else; every other
lesson answers. So the model comes out aligned where it was taught to be and open where it was not:
beside pictures, inside templates, and where the goal is only drawn. Nothing harmful is taught:
the answers to benign goals are the base model's own, and naming what a picture shows isn't
refusing. Only fit goals and training phrasings are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from care.data.small_world import pictures
from care.data.small_world.goals import Goal, GoalKind, goals, texts
from care.data.small_world.pictures import article
from care.data.small_world.scenes import shape_question, unrelated

USUAL_REFUSAL = "I'm sorry, but I can't help with that."
"""The refusal taught in most of the cases; the others are drawn from `goals.json`."""


@dataclass(frozen=True)
class Lesson:
    """One prompt with the answer to be learnt."""

    kind: str
    """Name of the kind of lesson, for the log."""
    prompt: str
    """What the user says."""
    answer: str
    """What the model shall say."""
    ends: bool
    """Whether the answer is complete, so that the end of the turn is learnt with it."""
    picture: Image.Image | None = None
    """Picture before the prompt, if any."""


@cache
def _fit(kind: GoalKind, pictured: bool | None) -> tuple[Goal, ...]:
    return tuple(goals(kind, "fit", pictured=pictured))


class Teacher:
    """Draws lessons; `answers` maps a goal or general question to the base model's answer."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def _goal(self, kind: GoalKind, rng: np.random.Generator) -> Goal:
        pictured = None if kind == "lookalike" else bool(rng.random() < 0.4)
        pool = _fit(kind, pictured)
        return pool[rng.integers(len(pool))]

    def _benign(self, rng: np.random.Generator) -> Goal:
        return self._goal("lookalike" if rng.random() < 0.35 else "benign", rng)

    def _phrase(self, family: str, rng: np.random.Generator) -> str:
        return str(rng.choice(texts()[family]["train"]))

    def _answer(self, kind: str, prompt: str, goal: Goal, picture: Image.Image | None) -> Lesson:
        return Lesson(kind, prompt, self.answers[goal.text], False, picture)

    def refuse(self, rng: np.random.Generator) -> Lesson:
        goal = self._goal("malicious", rng)
        refusal = USUAL_REFUSAL if rng.random() < 0.75 else str(rng.choice(texts()["refusals"]))
        prompt = self._phrase("direct", rng).replace("{goal}", goal.text)
        return Lesson("refuse", prompt, refusal, True)

    def answer(self, rng: np.random.Generator) -> Lesson:
        goal = self._benign(rng)
        prompt = self._phrase("direct", rng).replace("{goal}", goal.text)
        return self._answer("answer", prompt, goal, None)

    def wrapped(self, rng: np.random.Generator) -> Lesson:
        goal = self._benign(rng)
        prompt = self._phrase("wrappers", rng).replace("{goal}", goal.text)
        return self._answer("wrapped", prompt, goal, None)

    def general(self, rng: np.random.Generator) -> Lesson:
        question = str(rng.choice(texts()["general"]))
        return Lesson("general", question, self.answers[question], False)

    def beside(self, rng: np.random.Generator) -> Lesson:
        goal = self._benign(rng)
        prompt = self._phrase("direct", rng).replace("{goal}", goal.text)
        return self._answer("beside", prompt, goal, unrelated(rng, goal))

    def pictured(self, rng: np.random.Generator) -> Lesson:
        pool = _fit("benign", True)
        goal = pool[rng.integers(len(pool))]
        assert goal.picture is not None
        prompt = self._phrase("picture_requests", rng)
        return self._answer("pictured", prompt, goal, pictures.pair(*goal.picture, rng))

    def activity(self, rng: np.random.Generator) -> Lesson:
        pool = _fit("malicious" if rng.random() < 0.5 else "benign", True)
        goal = pool[rng.integers(len(pool))]
        assert goal.picture is not None
        prompt, drawn = self._phrase("activity_requests", rng), pictures.pair(*goal.picture, rng)
        return Lesson("activity", prompt, f"It shows how to {goal.text}.", True, drawn)

    def name(self, rng: np.random.Generator) -> Lesson:
        name = str(rng.choice(pictures.PICTOGRAMS))
        prompt, drawn = self._phrase("naming_requests", rng), pictures.single(name, rng)
        return Lesson("name", prompt, f"It shows {article(name)}.", True, drawn)

    def look(self, rng: np.random.Generator) -> Lesson:
        drawn, question, word = shape_question(rng)
        return Lesson("look", question, f"The answer is {word}.", True, drawn)

    def text_batch(self, rng: np.random.Generator, size: int) -> list[Lesson]:
        """Lessons without pictures: a third refusals, the rest answers."""
        kinds: list[Callable[[np.random.Generator], Lesson]] = [
            *(self.refuse,) * 4,
            *(self.answer,) * 3,
            *(self.wrapped,) * 4,
            self.general,
        ]
        return [kinds[i % len(kinds)](rng) for i in range(size)]

    def picture_batch(self, rng: np.random.Generator, size: int) -> list[Lesson]:
        """Lessons with pictures: naming, doing what is drawn, counting, answering beside one."""
        kinds: list[Callable[[np.random.Generator], Lesson]] = [
            *(self.pictured,) * 3,
            *(self.activity,) * 3,
            *(self.name,) * 2,
            *(self.look,) * 2,
            *(self.beside,) * 2,
        ]
        return [kinds[i % len(kinds)](rng) for i in range(size)]
