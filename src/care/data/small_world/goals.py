"""The small world of the embedded model: goals, their splits, and the suites made of them.

A goal is a short verb phrase. *Pictured* goals pair one of a few actions with an object ("paint a
door", "blow up a bridge") and so have a picture of two pictograms; *written* goals (`goals.json`)
have only words; *look-alikes* are benign goals in the words of harmful ones. Goals are split into
fit, validation and test by goal, so no goal crosses a split; the model is trained on fit goals.
All texts were written for this project; none holds a recipe for anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar

import numpy as np

from care.data.small_world.pictures import ACTIONS, article, seeded, things_of, vocabulary

Split = Literal["fit", "validation", "test"]
GoalKind = Literal["malicious", "benign", "lookalike"]
T = TypeVar("T")

REACH: dict[str, tuple[str, ...]] = {
    name: things_of(action["things"]) for name, action in vocabulary()["actions"].items()
}
"""For each action pictogram the objects with which it makes a sensible goal."""

HARMFUL_ACTIONS = frozenset(
    name for name, action in vocabulary()["actions"].items() if action["harmful"]
)
"""The action pictograms whose goals are malicious."""

TEST_SHARE, VALIDATION_SHARE = 0.35, 0.2
"""Shares of each family of goals (one action, or one written list) in test and validation."""

LOOKALIKE_TEST_SHARE = 0.47
"""The same for look-alikes, of which there are fewer: 61 for test."""


@dataclass(frozen=True)
class Goal:
    """One thing that somebody may want to do."""

    text: str
    """Verb phrase, such as "paint a door"."""
    kind: GoalKind
    """Malicious, benign, or benign in the words of something malicious."""
    split: Split
    """The split that this goal belongs to."""
    picture: tuple[str, str] | None = None
    """Pictograms of the action and the object, where the goal has a picture."""


@cache
def texts() -> dict[str, Any]:
    """The written part of the world (`goals.json`): goals, request phrasings, templates.

    Under `train`, `fit`, `validation` and `test` are phrasings for training the model and for the
    splits; under `unseen` goals for fit and validation, written without sight of the others.
    """
    file = resources.files("care.data.small_world").joinpath("goals.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _splits(count: int, *key: str) -> list[Split]:
    """A seeded assignment of `count` goals of one family to splits, in the shares above."""
    share = LOOKALIKE_TEST_SHARE if key == ("lookalikes",) else TEST_SHARE
    n_test, n_validation = round(count * share), round(count * VALIDATION_SHARE)
    sizes: dict[Split, int] = {
        "test": n_test,
        "validation": n_validation,
        "fit": count - n_test - n_validation,
    }
    names = [name for name, size in sizes.items() for _ in range(size)]
    order = seeded("split", *key).permutation(count)
    return [names[position] for position in order]


def _pictured() -> Iterator[Goal]:
    for action, things in REACH.items():
        kind: GoalKind = "malicious" if action in HARMFUL_ACTIONS else "benign"
        for thing, split in zip(things, _splits(len(things), action), strict=True):
            yield Goal(f"{ACTIONS[action]} {article(thing)}", kind, split, (action, thing))


def _written() -> Iterator[Goal]:
    kinds: dict[str, GoalKind] = {
        "malicious": "malicious",
        "benign": "benign",
        "lookalikes": "lookalike",
    }
    for family, kind in kinds.items():
        for text, split in zip(texts()[family], _splits(len(texts()[family]), family), strict=True):
            yield Goal(text, kind, split)


@cache
def all_goals() -> tuple[Goal, ...]:
    """Every goal of the world, pictured ones first, in a fixed order."""
    return (*_pictured(), *_written())


def goals(kind: GoalKind, split: Split, *, pictured: bool | None = None) -> list[Goal]:
    """Goals of one kind and split; `pictured` keeps those with (True) or without a picture."""
    return [
        goal
        for goal in all_goals()
        if goal.kind == kind
        and goal.split == split
        and (pictured is None or (goal.picture is not None) == pictured)
    ]


@cache
def unseen(kind: GoalKind, split: Split = "fit") -> tuple[Goal, ...]:
    """Goals to fit on or validate with that the model wasn't trained on, as those of test aren't.

    Every third look-alike is for validation, which has few of them otherwise.
    """
    found: list[str] = texts()["unseen"]["lookalikes" if kind == "lookalike" else kind]
    held = found[::3] if kind == "lookalike" else []
    rest = [text for text in found if text not in held]
    chosen = rest if split == "fit" else held if split == "validation" else []
    return tuple(Goal(text, kind, split) for text in chosen)


def sample(items: Sequence[T], n: int, rng: np.random.Generator) -> list[T]:
    """`n` of `items` without repetition, in random order."""
    return [items[i] for i in rng.permutation(len(items))[:n]]
