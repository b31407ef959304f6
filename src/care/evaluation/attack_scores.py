"""Types of the scorecard: what attacks come to, one by one and all together.

How these are made is in `adaptive` and `variants` (threats), `tries` and `union`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from care.evaluation.certificate import Certificate
from care.evaluation.suite_scores import DefenseScores, RateInterval
from care.typed import WHEN_SET, Count, Misfit, Positive, Share, inside


@dataclass(frozen=True)
class Threat:
    """A searched attack and a defense: what was made without knowing it, and through it.

    What is made is one image or, of an attack in variants, a suffix or several pictures.
    """

    attack: str
    """Name of the attack."""
    defense: str
    """Name of the defense."""
    steps: Count
    """Steps of the optimisation, or of the search."""
    epsilon: float | None
    """Largest change of a pixel; none where it is unbounded, and of words."""
    loss_undefended: float
    """Loss of what was made against the bare model."""
    loss_adaptive: float
    """Loss of what was made against the defense."""
    undefended: DefenseScores | None
    """Figures of the first on the bare model."""
    transfer: DefenseScores | None
    """Figures of the first under the defense, which it doesn't know."""
    adaptive: DefenseScores | None
    """Figures of the second under the defense, which it knows."""
    certified: Annotated[Certificate | None, WHEN_SET] = None
    """The most that any picture can achieve beside these requests; none without a monitor of
    requests."""


@dataclass(frozen=True)
class BestOfTries:
    """Share of requests that the best of n tries wins; no limits where all have one goal."""

    n: Positive
    """Number of tries."""
    rate: Share
    """Mean over requests of the probability that one of n tries, drawn from all, is harmful."""
    low: Share | None
    """Lower limit, resampling goals."""
    high: Share | None
    """Upper limit."""

    def check(self) -> None:
        """Misfit unless the rate lies between its limits, if it has any."""
        if (self.low is None) != (self.high is None):
            raise Misfit("", "must hold both low and high, or none of them")
        if self.low is not None:
            inside(self)


@dataclass(frozen=True)
class Tries:
    """An attack that asks each request in several variants, under one defense."""

    attack: str
    """Name of the attack."""
    suite: str
    """Name of its suite."""
    defense: str
    """Name of the defense."""
    requests: Count
    """Requests of which any variant was judged."""
    tries: Count
    """Most judged variants of a request."""
    errors: Count
    """Answers that failed or weren't judged; they are no tries."""
    best: tuple[BestOfTries, ...]
    """The best of 1, 4, 16 and all tries, as far as there are so many."""
    variants: dict[str, Share]
    """Share of the requests that each variant wins; empty where variants are draws."""


@dataclass(frozen=True)
class AttackFigure:
    """One attack under one defense: requests that any of its variants wins."""

    attack: str
    """Name of the attack."""
    requests: str
    """The held-out requests."""
    defense: str
    """Name of the defense."""
    transfer: RateInterval | None
    """Of what was made on the bare model."""
    adaptive: RateInterval
    """Of what was made through the defense; the same where nothing is."""


@dataclass(frozen=True)
class AttackUnion:
    """All attacks on the same requests, under one defense."""

    requests: str
    """The held-out requests."""
    defense: str
    """Name of the defense."""
    attacks: Count
    """Number of attacks."""
    strongest: str
    """The attack that wins the greatest share of the requests that it is made for."""
    alone: RateInterval
    """What it wins."""
    union: RateInterval
    """What any of them wins."""
    certified: Annotated[Certificate | None, WHEN_SET] = None
    """The most that any picture beside the requests as they are can win."""
