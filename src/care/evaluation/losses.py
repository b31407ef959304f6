"""What the searches of an evaluation came to: the loss of each, step by step, and whether it ended.

Images, pictures in variants and suffixes keep the losses of their steps in the run's folder
(attacks/NAME/K, `care.attacks.facts`; K is the place of the defense that they were made on). A
search *still fell* if its least loss so far became less, by more than a flat one's may
(`care.attacks.plateau`), within the last tenth of its steps or the last 25, whichever are more. One
that is as short as that counts too, unless its loss was next to nothing. More steps would have made
a better attack, and whatever it achieves is a floor, not what such an attack comes to.

No torch: `care report` makes the page of a run of an older version with this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from care.attacks.facts import (
    ALL,
    IMAGE,
    PICTURES,
    SUFFIXES,
    AttackFacts,
    PictureFacts,
    SuffixFacts,
    SuffixTrace,
    trace_of,
)
from care.attacks.plateau import Plateau
from care.runs.reading import read_json
from care.typed import Count, Misfit, Positive, T, from_tree

CURVES = 24
"""Most searches of one attack on one defense of which a curve is kept, evenly spaced."""

POINTS = 50
"""Most points of a curve, evenly spaced from the first step to the last."""


@dataclass(frozen=True)
class LossCurve:
    """One search, of a picture or a suffix."""

    name: str
    """Which variant it is of, and the id of the request that it is made for, if of one."""
    steps: Positive
    """Steps that it took."""
    loss: float
    """What it came to (nats a token), under what it was made against."""
    losses: tuple[float, ...]
    """Loss at evenly spaced steps, the first and the last among them."""
    falling: bool
    """Whether it still fell at its end."""

    def check(self) -> None:
        """Misfit for a curve of more points than steps, or of none."""
        if not 0 < len(self.losses) <= self.steps:
            raise Misfit("losses", f"has {len(self.losses)} points of {self.steps} steps")


@dataclass(frozen=True)
class AttackLosses:
    """The searches of one attack on one defense."""

    attack: str
    """Name of the attack."""
    defense: str
    """What they were made on: the bare model, or a defense."""
    searches: Positive
    """How many there are."""
    falling: Count
    """How many still fell at their end."""
    curves: tuple[LossCurve, ...]
    """The curves of some of them, evenly spaced, or of all."""

    def check(self) -> None:
        """Misfit if more fell than there are, or more curves are told."""
        if not max(self.falling, len(self.curves)) <= self.searches:
            raise Misfit("searches", f"is {self.searches}, fewer than fell or have a curve")


def losses_in(path: Path, defenses: Sequence[str]) -> list[AttackLosses]:
    """The searches in the folder `path` of a run whose `defenses` are told in their order.

    DataError for files that care doesn't write there.
    """
    found: list[AttackLosses] = []
    attacks = sorted(path.glob("attacks/*")) if (path / "attacks").is_dir() else []
    for attack in attacks:
        for place, defense in enumerate(defenses):
            curves = [curve for curve in _curves(attack / str(place)) if curve is not None]
            if curves:
                falling = sum(curve.falling for curve in curves)
                few = tuple(_spaced(curves, CURVES))
                found.append(AttackLosses(attack.name, defense, len(curves), falling, few))
    return found


def still_falling(losses: Sequence[float]) -> bool:
    """Whether a search with these losses wasn't flat at its end, nor had nothing left to gain."""
    flat = Plateau(steps=max(Plateau.steps, math.ceil(len(losses) / 10)))
    return min(losses) > flat.enough and not flat.reached(losses)


# -- inside ----------------------------------------------------------------------------------------


def _curves(folder: Path) -> Iterator[LossCurve | None]:
    """The searches of one folder, in the order in which they were made."""
    if (folder / IMAGE).is_file():
        for name, image in _read(AttackFacts, folder / IMAGE).images.items():
            yield _curve(name, image.loss, image.losses)
    if (folder / PICTURES).is_file():
        for made in _read(PictureFacts, folder / PICTURES).pictures:
            yield _curve(_named(made.variant, made.request), made.loss, made.losses)
    if (folder / SUFFIXES).is_file():
        for number, request in enumerate(_read(SuffixFacts, folder / SUFFIXES).suffixes):
            if (folder / trace_of(number)).is_file():
                state = _read(SuffixTrace, folder / trace_of(number)).state
                yield _curve(_named("suffix", request), state.least, state.losses)


def _curve(name: str, loss: float, losses: Sequence[float]) -> LossCurve | None:
    """None for a picture of a version that kept no losses."""
    if not losses:
        return None
    return LossCurve(name, len(losses), loss, tuple(_spaced(losses, POINTS)), still_falling(losses))


def _named(variant: str, request: str) -> str:
    return variant if request == ALL else f"{variant}, {request}"


def _spaced(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _read(kind: type[T], file: Path) -> T:
    todo = "delete it and resume to make it again"
    tree = read_json(file, "facts of an attack", otherwise=todo)
    return from_tree(kind, tree, strict=False, what=str(file), todo=todo)
