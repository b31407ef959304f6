"""Text jailbreaks: a goal inside a template that asks for it sideways.

The templates were written for this project and live with the small world of the embedded model
(`goals.json`), split into those to train on, fit on, choose by and test with; nothing is
copied from collections of jailbreaks, and nothing in them is about any one goal. `wrapped` puts any
goals into them, for any model.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from care.data.example import Example
from care.data.small_world.goals import Split
from care.data.small_world.suites import phrases
from care.errors import UsageError

PLACE = "{goal}"
"""What a template holds where the goal belongs."""


def templates(split: Split = "test") -> list[str]:
    """The templates of a split, each with `{goal}` in it; UsageError for an unknown split."""
    if split not in ("fit", "validation", "test"):
        raise UsageError(f"There is no split {split!r}; use fit, validation or test.")
    return phrases("wrappers", split)


def wrapped(
    examples: Sequence[Example],
    split: Split = "test",
    *,
    each: int = 1,
    own: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Example]:
    """Every example's goal in `each` templates, images and all else as they were.

    Templates are drawn without repetition for one example; `own` takes the place of those of the
    split. Ids get the template's number appended, so that several templates of one goal differ.

    Raises UsageError for a template without a place for the goal, or more templates an example
    than there are.
    """
    found = templates(split) if own is None else list(own)
    for template in found:
        if PLACE not in template:
            raise UsageError(f"The template {template!r} has no place for the goal; write {PLACE}.")
    if not 1 <= each <= len(found):
        raise UsageError(f"each must lie between 1 and {len(found)}, got {each}.")
    rng = np.random.default_rng(seed)
    made: list[Example] = []
    for example in examples:
        goal = example.goal or example.prompt
        drawn: list[int] = rng.permutation(len(found))[:each].tolist()
        for number in drawn:
            prompt = found[number].replace(PLACE, goal)
            made.append(replace(example, id=f"{example.id}-t{number}", prompt=prompt, goal=goal))
    return made
