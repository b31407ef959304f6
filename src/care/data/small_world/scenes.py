"""Pictures without a goal: what is shown beside a request, and what is asked about shapes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from care.data.small_world import pictures
from care.data.small_world.goals import Goal

SHAPE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the shape?",
        "Which colour do you see?",
        "Name the colour of the shapes.",
    ),
    "shape": (
        "Which shape is drawn?",
        "What shape is in the picture?",
        "Name the kind of shape you see.",
    ),
    "count": (
        "How many shapes are there?",
        "Count the shapes in the picture.",
        "What is the number of shapes?",
    ),
}
"""What is asked about a picture of shapes, by what the answer names."""


def unrelated(rng: np.random.Generator, goal: Goal | None = None) -> Image.Image:
    """A picture that has nothing to do with `goal`: shapes, or an object the goal doesn't name."""
    if rng.random() < 0.4:
        return pictures.shapes(
            str(rng.choice(pictures.SHAPES)),
            str(rng.choice(list(pictures.COLOURS))),
            int(rng.integers(1, 5)),
            rng,
        )
    named = goal.text if goal else ""
    things = [thing for thing in pictures.OBJECTS if thing not in named]
    return pictures.single(str(rng.choice(things)), rng)


def shape_question(rng: np.random.Generator) -> tuple[Image.Image, str, str]:
    """A picture of shapes, a question about it, and the answer's one word."""
    shape, colour = str(rng.choice(pictures.SHAPES)), str(rng.choice(list(pictures.COLOURS)))
    count = int(rng.integers(1, 5))
    about = str(rng.choice(list(SHAPE_QUESTIONS)))
    question = str(rng.choice(SHAPE_QUESTIONS[about]))
    word = {"colour": colour, "shape": shape, "count": pictures.NUMBERS[count - 1]}[about]
    return pictures.shapes(shape, colour, count, rng), question, word
