"""Twins: a harmful request and a harmless one that differ in a word or two.

`twins.json` gives malicious goals of the small world, to fit on or to validate with, a harmless
counterpart each ("build a pipe bomb", "build a toy boat"), which is no goal of the world itself.
Both are asked in the same phrasing, and they were written so that under the embedded model's
tokenizer both have the same number of tokens: every token has its counterpart at its own place.
Other tokenizers may split them otherwise; `care.models.alignment.align` then matches them by role.

No twin has a goal of the test split. What is done with them is in `care.diagnosis.full`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Literal, get_args

from care.data.example import Example, ExampleKind
from care.data.minimal_pairs import Pair
from care.data.small_world.goals import goals, unseen
from care.data.small_world.suites import phrases
from care.errors import UsageError

KIND = "twin requests"
"""What the two sides of these pairs are, in words."""


@cache
def goal_twins(split: Literal["fit", "validation"] = "fit") -> dict[str, str]:
    """Malicious goal of one split -> its harmless twin, in the order of the file."""
    if split not in ("fit", "validation"):
        raise UsageError(f"twins are of the split fit or validation, not {split!r}")
    file = resources.files("care.data.small_world").joinpath("minimal_pairs.json")
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    own = {g.text for g in (*goals("malicious", split), *unseen("malicious", split))}
    return {harmful: harmless for harmful, harmless in found.items() if harmful in own}


def load(split: Literal["fit", "validation"] = "fit", n: int | None = None) -> list[Pair]:
    """The first `n` twins of a split (all of them by default) as direct requests without pictures.

    The phrasings are those of the split, one after the other. UsageError for another split.
    """
    templates = phrases("direct", split)
    made: list[Pair] = []
    for place, texts in enumerate(list(goal_twins(split).items())[:n]):
        template = templates[place % len(templates)]
        sides = [
            Example(
                id=f"twins-{split}-{place:03d}-{kind}",
                prompt=template.replace("{goal}", goal),
                goal=goal,
                kind=kind,
                suite="twins",
                category="written",
            )
            for goal, kind in zip(texts, get_args(ExampleKind), strict=True)
        ]
        made.append(Pair(sides[0], sides[1], KIND))
    return made
