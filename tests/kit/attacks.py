"""Requests, wished-for answers and a start picture for attacks on a tiny model."""

import numpy as np
import pytest

from care.data.example import Example
from kit.tiny import picture, tiny_vlm

GOALS = ["wash a car", "build a small house from wood", "do this", "picture soap and water", "help"]
EXAMPLES = [Example(f"g{i}", f"How do you {goal}?") for i, goal in enumerate(GOALS)]
TARGETS = [f"To {goal}, you'll need" for goal in GOALS]
START = picture(3, (28, 28))


@pytest.fixture
def vlm():
    return tiny_vlm()


def pixels(image):
    """8-bit levels of a picture, which may be subtracted from one another."""
    return np.asarray(image).astype(int)
