"""What a rule of the verdict is: a part of the diagnosis, tests of its figures, sentences.

    Rule(
        "estimate_is_exact",
        "exact patching of neurons",
        lambda diagnosis: [{"rho": shown(diagnosis["neurons"]["spearman"], "rho")}],
        *either(
            lambda look: look["rho"].value >= 0.5,
            "The estimate ranks neurons as exact patching does: ρ = {rho}.",
            "The estimate and exact patching disagree on neurons (ρ = {rho}).",
        ),
    )

A rule takes from the tree what it is about, one dict of figures (a *look*) for each sentence, and
none where the part wasn't measured. Of its cases the first whose test the look passes is said, with
`{names}` filled from the look. The rules themselves are in `care.report.site_rules`,
`care.report.trust_rules` and `care.report.neuron_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from care.diagnosis.reliability import MIN_SITES

MIN_RANK_AGREEMENT = 0.5
"""Spearman's ρ from which two looks at the same sites agree; a lower limit must exceed 0."""

Tree = Mapping[str, Any]
"""A part of the `diagnosis` tree of report.json."""

Look = Mapping[str, Any]
"""The figures of one sentence, by the names that it and its test have for them."""

Test = Callable[[Look], bool]


class Conclusion(NamedTuple):
    """The outcome of one rule."""

    holds: bool
    """Whether the figures support it."""
    text: str
    """The sentence, with the figure."""


class Case(NamedTuple):
    """What is said if a test passes."""

    test: Test
    """Whether this is the case."""
    holds: bool
    """Whether the figures then support the rule."""
    text: str
    """The sentence, with the figures of the look as `{names}`."""


class Rule(NamedTuple):
    """One question to a diagnosis."""

    name: str
    """What holds if it is supported."""
    tests: str
    """What it tests, in the words of "not tested here"."""
    looks: Callable[[Tree], Iterable[Look]]
    """From the `diagnosis` tree to the figures of each sentence; none if they aren't there."""
    cases: tuple[Case, ...]
    """Of these the first that applies is said of a look; the last always does."""

    def findings(self, diagnosis: Tree) -> list[Conclusion]:
        """What the figures say, one sentence for each look."""
        found = []
        for look in self.looks(diagnosis):
            case = next(case for case in self.cases if case.test(look))
            found.append(Conclusion(case.holds, case.text.format_map(look)))
        return found


def rule(name: str, tests: str, looks: Callable[[Tree], Iterable[Look]], *cases: Case) -> Rule:
    """A rule and its cases."""
    return Rule(name, tests, looks, cases)


def yes(test: Test, text: str) -> Case:
    """A case that the figures support."""
    return Case(test, True, text)


def no(test: Test, text: str) -> Case:
    """A case that they don't support."""
    return Case(test, False, text)


def always(_: Look) -> bool:
    """The test of the last case."""
    return True


def either(test: Test, supported: str, unsupported: str = "") -> tuple[Case, Case]:
    """One sentence if the test passes, another if it doesn't.

    One text may stand for both: `Halves [rank|do not rank] the sites alike.`
    """
    first, second = (
        _ALTERNATIVES.sub(which, text)
        for which, text in ((r"\1", supported), (r"\2", unsupported or supported))
    )
    return yes(test, first), no(always, second)


_ALTERNATIVES = re.compile(r"\[([^][|]*)\|([^][]*)\]")


# -- figures -------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A figure with its limits, written `1.60 [1.40, 1.80]`."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        decimals = 2 if max(map(abs, self)) >= 0.1 else 4
        middle, low, high = (f"{value:.{decimals}f}" for value in self)
        return f"{middle} [{low}, {high}]"

    @property
    def agrees(self) -> bool:
        """Whether it's a rank correlation of two looks that agree."""
        return self.value >= MIN_RANK_AGREEMENT and self.low > 0.0


def shown(interval: Tree, key: str = "rate", sign: int = 1) -> Shown:
    """The figure `key` of a part of the tree; with `sign` −1 it and its limits turned round."""
    return Shown(sign * interval[key], *sorted(sign * interval[end] for end in ("low", "high")))


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's ρ of effects on the same sites; None for too few of them, or if it's undefined."""
    if len(first) < MIN_SITES or np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return None
    return float(np.asarray(spearmanr(first, second))[0])


def agreement(what: str, first: Sequence[float], second: Sequence[float]) -> list[Look]:
    """The look at two lists of effects on the same sites for `AGREE`; none if ρ is undefined.

    `what` names the two, as in "the metrics a and b".
    """
    rho = correlation(first, second)
    return [] if rho is None else [{"what": capital(what), "rho": rho, "n": len(first)}]


AGREE = either(
    lambda look: look["rho"] >= MIN_RANK_AGREEMENT,
    "{what} [agree|disagree] on which sites matter: ρ = {rho:.2f} over {n}.",
)
"""Whether two looks rank the sites alike."""


def capital(words: str) -> str:
    """The words with a capital first letter."""
    return words[:1].upper() + words[1:]
