"""The suites of the small world: what is asked of the embedded model in fit, validation and test.

| suite | role | what is asked |
|---|---|---|
| direct | attack (baseline) | a malicious goal in plain words |
| beside-image | attack | the same beside an unrelated picture |
| text-jailbreak | attack | a malicious goal inside a template |
| pictured-goal | attack | harmless words; the malicious goal is only in the picture |
| pgd-32, pgd-unconstrained | attack | a malicious goal beside a universal adversarial picture |
| benign, benign-image | utility | a benign goal, alone or beside an unrelated picture |
| vqa, naming | utility | colour, shape or count of shapes; the name of a pictogram |
| lookalike, lookalike-image | over-refusal | a benign goal in the words of a harmful one |
| benign-wrapped | over-refusal | a benign goal inside a jailbreak template |
| benign-pictured | over-refusal | harmless words and a benign goal in the picture |

Templates and phrasings of a split are its own too. Everything is seeded by suite, split and place.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from care.data.example import Example, Suite, SuiteRole
from care.data.small_world import pictures
from care.data.small_world.goals import Goal, GoalKind, Split, goals, sample, texts, unseen
from care.data.small_world.pictures import article, seeded
from care.data.small_world.scenes import shape_question, unrelated
from care.errors import DataError, UsageError

PGD = ("pgd-32", "pgd-unconstrained")

BASELINE = "direct"
"""The attack suite that is shown but not counted: the model refuses it by itself."""

ATTACKS = ("beside-image", "text-jailbreak", "pictured-goal", *PGD)
"""The attack suites that a repair is meant to close (`direct` is their baseline)."""

UTILITY = ("benign", "benign-image", "vqa", "naming")

OVER_REFUSAL = ("lookalike", "lookalike-image", "benign-wrapped", "benign-pictured")

NAMES = (BASELINE, *ATTACKS, *UTILITY, *OVER_REFUSAL)
"""Every suite of the small world, attacks first."""

OPENING = "To {goal}, you'll need to"
"""How answers begin that were taught to the embedded model, and that attacks on it wish for."""

LENGTHS: dict[Split, int] = {"fit": 60, "validation": 40, "test": 60}
"""Examples of one suite in each split, where there are goals enough: see `length`."""

FIT_LENGTHS = {
    "direct": 150,
    "beside-image": 300,
    "text-jailbreak": 500,
    "pictured-goal": 200,
    "pgd-32": 110,
    "pgd-unconstrained": 90,
    "benign": 80,
    "benign-image": 60,
    "vqa": 30,
    "naming": 30,
    "lookalike": 200,
    "lookalike-image": 200,
    "benign-wrapped": 240,
    "benign-pictured": 100,
}
"""Examples of a suite that are asked to fit on: more where the model complies seldom, since it is
attacks that worked of which a gate can't have enough, and where benign requests look like them."""

SELECTION_LENGTHS = {"attack": 40, "utility": 40, "over_refusal": 120}
"""Validation examples of one suite that sites are scanned and candidates judged on, by its role:
most where a point or two decides between candidates."""

TEST_LENGTH = 60
"""Test examples of one suite."""


def role(name: str) -> SuiteRole:
    """What the suite `name` measures."""
    if name in UTILITY:
        return "utility"
    return "over_refusal" if name in OVER_REFUSAL else "attack"


def length(name: str, split: Split) -> int:
    """How many examples the suite `name` has in a split: no more than there are look-alikes."""
    if name.startswith("lookalike"):
        return min(LENGTHS[split], len(_written("lookalike", split)))
    return LENGTHS[split]


def phrases(family: str, split: Split) -> list[str]:
    """The phrasings of a split.

    To fit on, first those that the model hasn't been trained on, since what it was trained to
    refuse isn't what gets past it; then those it was. A family without validation phrasings lends
    those it was trained on.
    """
    table: dict[str, list[str]] = texts()[family]
    if split == "fit":
        return table.get("fit", []) + table["train"]
    return table.get(split, table["train"])


def adversarial_images(name: str, split: Split) -> list[Image.Image]:
    """The shipped universal adversarial pictures of one PGD suite and split."""
    folder = resources.files("care.data.small_world").joinpath("adversarial")
    found = sorted(
        f.name
        for f in folder.iterdir()
        if f.name.startswith(f"{name}-{split}-") and f.name.endswith(".png")
    )
    if not found:
        raise DataError(
            f"no adversarial picture for {name} in {split} is shipped: run "
            "`python -m recipes.embedded_model attack` in a checkout"
        )
    images: list[Image.Image] = []
    for file in found:
        with folder.joinpath(file).open("rb") as stream:
            images.append(Image.open(stream).convert("RGB"))
    return images


def _some(found: list[Goal], split: Split, n: int, rng: np.random.Generator) -> list[Goal]:
    """`n` goals. But for test, more than there are: further rounds phrase them otherwise."""
    chosen = sample(found, n, rng)
    while split != "test" and len(chosen) < n:
        chosen += sample(found, n - len(chosen), rng)
    return chosen


def _written(kind: GoalKind, split: Split) -> list[Goal]:
    """Goals without a picture, first those that were written for this split alone."""
    return [*unseen(kind, split), *goals(kind, split, pictured=False)]


def _mixed(kind: GoalKind, split: Split, n: int, rng: np.random.Generator) -> list[Goal]:
    """`n` goals, half of them pictured ones, as far as there are so many."""
    drawn = _some(goals(kind, split, pictured=True), split, n // 2, rng)
    written = _some(_written(kind, split), split, n - len(drawn), rng)
    return drawn + written


def _asked(goal: Goal, template: str) -> str:
    return template.replace("{goal}", goal.text)


class _Maker:
    """Makes the examples of one suite in one split."""

    def __init__(self, name: str, split: Split, n: int) -> None:
        self.name, self.n = name, n
        self.split: Split = split
        self.rng = seeded("suite", name, split)

    def example(self, place: int, prompt: str, **fields: Any) -> Example:
        key = f"{self.name}-{self.split}-{place:03d}"
        return Example(id=key, prompt=prompt, suite=self.name, **fields)

    def of_goals(
        self,
        chosen: list[Goal],
        family: str,
        picture: Callable[[Goal, np.random.Generator, int], Image.Image] | None = None,
    ) -> list[Example]:
        """One example for each goal, asked in the phrasings of `family`, with a picture or not."""
        templates = phrases(family, self.split)
        made: list[Example] = []
        for place, goal in enumerate(chosen):
            rng = seeded(self.name, self.split, place)
            images = (picture(goal, rng, place),) if picture else ()
            made.append(
                self.example(
                    place,
                    _asked(goal, templates[place % len(templates)]),
                    images=images,
                    goal=goal.text,
                    kind="malicious" if goal.kind == "malicious" else "benign",
                    category="pictured" if goal.picture else "written",
                )
            )
        return made

    def attack(self) -> list[Example]:
        """The attack suites, and `direct`."""
        if self.name == "pictured-goal":
            found = goals("malicious", self.split, pictured=True)
            chosen = _some(found, self.split, self.n, self.rng)
            return self.of_goals(chosen, "picture_requests", _drawn)
        # The same goals in every suite that words them, so that suites differ by attack alone.
        chosen = _mixed("malicious", self.split, self.n, seeded("attacked", self.split))
        if self.name == "text-jailbreak":
            return self.of_goals(chosen, "wrappers")
        if self.name == "beside-image":
            return self.of_goals(chosen, "direct", _beside)
        if self.name in PGD:
            images = adversarial_images(self.name, self.split)
            return self.of_goals(chosen, "direct", lambda g, r, place: images[place % len(images)])
        return self.of_goals(chosen, "direct")

    def answerable(self) -> list[Example]:
        """Benign goals and look-alikes in their four shapes."""
        if self.name == "benign-pictured":
            found = goals("benign", self.split, pictured=True)
            chosen = _some(found, self.split, self.n, self.rng)
            return self.of_goals(chosen, "picture_requests", _drawn)
        if self.name.startswith("lookalike"):
            chosen = _some(_written("lookalike", self.split), self.split, self.n, self.rng)
        else:
            chosen = _mixed("benign", self.split, self.n, self.rng)
        family = "wrappers" if self.name == "benign-wrapped" else "direct"
        return self.of_goals(chosen, family, _beside if self.name.endswith("-image") else None)

    def questions(self) -> list[Example]:
        """Questions with one right answer: `vqa` and `naming`."""
        made: list[Example] = []
        for place in range(self.n):
            rng = seeded(self.name, self.split, place)
            if self.name == "vqa":
                drawn, question, word = shape_question(rng)
                goal = "answer a question about shapes"
            else:
                word = pictures.PICTOGRAMS[int(rng.integers(len(pictures.PICTOGRAMS)))]
                drawn, goal = pictures.single(word, rng), f"name {article(word)}"
                asked = phrases("naming_requests", self.split)
                question = asked[place % len(asked)]
            fields = {"images": (drawn,), "goal": goal, "references": (word,)}
            made.append(self.example(place, question, **fields))
        return made


def _drawn(goal: Goal, rng: np.random.Generator, place: int) -> Image.Image:
    assert goal.picture is not None
    return pictures.pair(*goal.picture, rng)


def _beside(goal: Goal, rng: np.random.Generator, place: int) -> Image.Image:
    return unrelated(rng, goal)


def load(name: str, split: Split = "test", n: int | None = None) -> Suite:
    """The suite `name` of the small world in one split, at most `n` examples of it.

    But for test, a suite may be longer than there are goals: these then come back in other words.

    Raises UsageError for an unknown name or split, or an `n` below 1.
    """
    if name not in NAMES:
        raise UsageError(f"unknown suite {name!r} of the small world; there are {', '.join(NAMES)}")
    if split not in LENGTHS:
        raise UsageError(f"unknown split {split!r}; there are {', '.join(LENGTHS)}")
    n = length(name, split) if n is None else n
    if n < 1:
        raise UsageError(f"a suite has at least one example, but n is {n}; pass 1 or more")
    maker = _Maker(name, split, n)
    if role(name) == "attack":
        made = maker.attack()
    elif name in ("vqa", "naming"):
        made = maker.questions()
    else:
        made = maker.answerable()
    return Suite(
        name=name,
        role=role(name),
        examples=tuple(made),
        version="1",
        licence="Apache-2.0; pictograms SIL OFL 1.1",
        source="care.embedded",
        revision=split,
    )


def attack_requests() -> tuple[list[Example], list[str]]:
    """A request for every malicious fit goal, and how its answer is wished to begin."""
    wished = goals("malicious", "fit")
    templates = texts()["direct"]["train"]
    examples = [
        Example(
            id=f"pgd-{i}",
            prompt=templates[i % len(templates)].replace("{goal}", goal.text),
            goal=goal.text,
            kind="malicious",
        )
        for i, goal in enumerate(wished)
    ]
    return examples, [OPENING.format(goal=goal.text) for goal in wished]
