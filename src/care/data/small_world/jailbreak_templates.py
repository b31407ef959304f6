"""Text jailbreaks: a goal inside a template that asks for it sideways.

The templates were written for this project and live with the small world of the embedded model,
split into those to train on, fit on, choose by and test with (`goals.json`), and those of an
attacker (`unseen_templates.json`), which nothing else looks at; nothing is copied from collections
of jailbreaks, and nothing in them is about any one goal. `wrapped` puts any goals into them, for
any model.

A template holds `{goal}` where the goal belongs, or `{goal:CODE}` for the goal in a code:

    base64, rot13, leet (l33t), spaced (l e t t e r s), piglatin, reversed
"""

import base64
import codecs
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Literal, get_args

import numpy as np

from care.data.example import Example
from care.data.small_world.suites import phrases
from care.errors import UsageError

TemplateSplit = Literal["fit", "validation", "test", "unseen"]
"""What templates are for; `unseen` ones are an attacker's, and are used for nothing else."""

PLACE = "{goal}"
"""What a template holds where the goal belongs."""

_PLACES = re.compile(r"\{goal(?::(\w+))?\}")
_VOWELS = "aeiou"


def templates(split: TemplateSplit = "test") -> list[str]:
    """The templates of a split, each with a place for the goal; UsageError for an unknown split."""
    if split not in get_args(TemplateSplit):
        raise UsageError(f"There is no split {split!r}; use fit, validation, test or unseen.")
    if split == "unseen":
        return [text for texts in unseen_families().values() for text in texts]
    return phrases("wrappers", split)


@cache
def unseen_families() -> dict[str, tuple[str, ...]]:
    """The unseen templates by what they do: role play, fiction, code, encoding and so on."""
    file = resources.files("care.data.small_world").joinpath("unseen_templates.json")
    found: dict[str, tuple[str, ...]] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        found[entry["family"]] = (*found.get(entry["family"], ()), entry["text"])
    return found


def filled(template: str, goal: str) -> str:
    """The template with the goal in its places, in code where it says so.

    Raises UsageError for a template without a place for the goal, or an unknown code.
    """
    codes = [found[1] for found in _PLACES.finditer(template)]
    if not codes:
        raise UsageError(f"The template {template!r} has no place for the goal; write {PLACE}.")
    if unknown := [code for code in codes if code and code not in CODES]:
        raise UsageError(f"There is no code {unknown[0]!r} for goals; use {', '.join(CODES)}.")
    return _PLACES.sub(lambda found: CODES[found[1]](goal) if found[1] else goal, template)


def wrapped(
    examples: Sequence[Example],
    split: TemplateSplit = "test",
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
        filled(template, "")
    if not 1 <= each <= len(found):
        raise UsageError(f"each must lie between 1 and {len(found)}, got {each}.")
    rng = np.random.default_rng(seed)
    made: list[Example] = []
    for example in examples:
        goal = example.goal or example.prompt
        drawn: list[int] = rng.permutation(len(found))[:each].tolist()
        for number in drawn:
            prompt = filled(found[number], goal)
            made.append(replace(example, id=f"{example.id}-t{number}", prompt=prompt, goal=goal))
    return made


# -- codes -----------------------------------------------------------------------------------------


def _base64(goal: str) -> str:
    return base64.b64encode(f"How do you {goal}?".encode()).decode()


def _rot13(goal: str) -> str:
    return codecs.encode(goal, "rot13")


def _leet(goal: str) -> str:
    return goal.lower().translate(str.maketrans("aeiost", "431057"))


def _spaced(goal: str) -> str:
    return "  ".join(" ".join(word) for word in goal.split())


def _piglatin(goal: str) -> str:
    return " ".join(map(_pig, goal.lower().split()))


def _pig(word: str) -> str:
    first = next((place for place, letter in enumerate(word) if letter in _VOWELS), 0)
    return f"{word}way" if first == 0 else f"{word[first:]}{word[:first]}ay"


def _reversed(goal: str) -> str:
    return goal[::-1]


CODES: dict[str, Callable[[str], str]] = {
    "base64": _base64,
    "rot13": _rot13,
    "leet": _leet,
    "spaced": _spaced,
    "piglatin": _piglatin,
    "reversed": _reversed,
}
"""Codes of goals by name; base64 holds the whole question."""
