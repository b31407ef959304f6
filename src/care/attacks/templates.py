"""Unseen templates of jailbreaks: each goal in all of them.

The templates (`care.data.small_world.jailbreak_templates`, split `unseen`) were written for this
attack and are used for nothing else; some of them encode the goal. That one template of many works
is likelier than that a given one does: the best of all, per goal, is the figure of somebody who
tries them (Shen et al. 2023, arXiv 2308.03825), their mean that of somebody who takes one blindly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from care.attacks.variants import FixedAttack, Stage, Variant
from care.data.example import Example
from care.data.small_world.jailbreak_templates import filled, templates
from care.errors import UsageError


@dataclass(frozen=True)
class Templates(FixedAttack):
    """Each goal in every unseen template."""

    name: ClassVar[str] = "templates"
    source: ClassVar[str] = "this project; best of many: Shen et al. 2023"
    stage: ClassVar[Stage] = "template"

    n: int = 0
    """How many of the templates, evenly spaced among them; 0: all."""

    def __post_init__(self) -> None:
        known = len(templates("unseen"))
        if not 0 <= self.n <= known:
            raise UsageError(f"There are {known} unseen templates, so n lies between 0 and them.")

    def variants(self) -> list[Variant]:
        """One for each template."""
        found = templates("unseen")
        places = range(len(found))
        if self.n:
            places = [place * len(found) // self.n for place in range(self.n)]
        return [Variant(f"t{place:02d}", partial(_within, found[place])) for place in places]


def _within(template: str, example: Example) -> Example:
    return replace(example, prompt=filled(template, example.goal or example.prompt))
