"""Further studies of a comparison, as figures: unseen families, sizes of the fit, strengths.

    families    a family's attack success fitted with and without it, on the same test examples:
                the difference is tested by sign flips of whole goals, corrected over all (Holm)
    sizes       the figures of the table by the number of requests that were fitted on
    strengths   the same by strength, on validation examples; 0 is the bare model

Attack success, answered harmless requests and utility are counted as in the table
(`comparison_table`), with limits that resample goals. Nothing is chosen by any of it. Not here:
which defenses are studied, fits and answers (`care.pipeline.studies`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from care.data.small_world.suites import BASELINE
from care.evaluation.ablation_table import AgainstMethod, paired_change, pooled_rate
from care.evaluation.comparison_table import CARE
from care.evaluation.results import Results
from care.evaluation.suite_scores import RateInterval
from care.statistics.intervals import holm
from care.typed import WHEN_SET, Count, Misfit, NonNegative, Positive

STUDIES = ("families", "sizes", "strengths")
"""What may be studied, as fields of `Studies`."""

LEVEL = 0.05
"""p, corrected over all families and defenses, below which a change is found."""


@dataclass(frozen=True)
class UnseenFamily:
    """One defense against one attack family that it wasn't fitted on."""

    defense: str
    """Name of its row in the table."""
    family: str
    """The attack suite that was left out."""
    failed: str | None
    """Why it couldn't be fitted without it; then it has no figures."""
    seen: RateInterval | None
    """Attack success of the family under the row of the table, which is fitted on it too."""
    unseen: RateInterval | None
    """The same, fitted without it."""
    against: AgainstMethod | None
    """Unseen less seen, on the same attacks."""

    def check(self) -> None:
        """Misfit for figures of what couldn't be fitted, and for a row without any."""
        if len({self.failed is not None, self.unseen is None, self.against is None}) > 1:
            raise Misfit("unseen", "must be there exactly where nothing failed")


@dataclass(frozen=True)
class FittedOn:
    """One defense fitted on so many requests."""

    defense: str
    """Name of its row in the table."""
    most: Positive
    """Most requests of each class."""
    counts: dict[str, Count]
    """Requests of each class that there were."""
    failed: str | None
    """Why it couldn't be fitted; then it has no figures."""
    asr: RateInterval | None
    """Attack success over all attacks but the baseline's."""
    answered: RateInterval | None
    """Harmless requests answered; none without such suites."""
    utility: RateInterval | None
    """Utility; none without such suites."""

    def check(self) -> None:
        """Misfit for figures of what couldn't be fitted, and for a point without any."""
        if (self.asr is None) != (self.failed is not None):
            raise Misfit("asr", "must be there exactly where nothing failed")


@dataclass(frozen=True)
class AtStrength:
    """One defense at another strength."""

    defense: str
    """Name of its row in the table."""
    factor: NonNegative
    """Strength as a multiple of the one in the table."""
    strength: float
    """The strength itself."""
    asr: RateInterval | None
    """Attack success on the validation examples that settings are tried on."""
    answered: RateInterval | None
    """Harmless requests answered; none without such suites."""
    utility: RateInterval | None
    """Utility; none without such suites."""


@dataclass(frozen=True)
class Studies:
    """What was studied besides."""

    defenses: tuple[str, ...]
    """The rows of the table that were studied."""
    claims: tuple[str, ...]
    """What is and what isn't found, in sentences."""
    notes: tuple[str, ...]
    """How it was made, in sentences."""
    families: Annotated[tuple[UnseenFamily, ...], WHEN_SET] = ()
    """Attack families that weren't fitted on, where they were asked for."""
    sizes: Annotated[tuple[FittedOn, ...], WHEN_SET] = ()
    """Fits on few requests to many, where they were asked for."""
    strengths: Annotated[tuple[AtStrength, ...], WHEN_SET] = ()
    """Strengths, where they were asked for."""


# -- figures ---------------------------------------------------------------------------------------


def unseen_family(
    results: Results, defense: str, family: str, refitted: str, seed: int = 0
) -> UnseenFamily:
    """The figures of a family under a row and under its fit without it; p is not yet corrected.

    `refitted` is that fit's name in the judged answers. UsageError for fewer than two goals.
    """
    own = Results([row for row in results.rows if row["suite"] == family])
    change, p = paired_change(own, defense, refitted, seed)
    seen, unseen = (pooled_rate(own, name, "attack", seed) for name in (defense, refitted))
    return UnseenFamily(defense, family, None, seen, unseen, AgainstMethod(change, p, p))


def corrected(rows: Sequence[UnseenFamily]) -> tuple[UnseenFamily, ...]:
    """The rows with p corrected over all of them."""
    found = [row.against for row in rows if row.against is not None]
    adjusted = iter(holm([each.p for each in found]) if found else ())
    return tuple(
        row
        if row.against is None
        else replace(row, against=replace(row.against, p_holm=float(next(adjusted))))
        for row in rows
    )


def pooled_rates(results: Results, name: str, seed: int = 0) -> dict[str, RateInterval | None]:
    """Attack success without the baseline's, harmless requests answered, and utility."""
    counted = Results([row for row in results.rows if row["suite"] != BASELINE])
    return {
        "asr": pooled_rate(counted, name, "attack", seed),
        "answered": pooled_rate(counted, name, "over_refusal", seed),
        "utility": pooled_rate(counted, name, "utility", seed),
    }


# -- sentences -------------------------------------------------------------------------------------


def study_claims(studies: Studies) -> tuple[str, ...]:
    """A sentence for each study that is there."""
    found = [_unseen(studies.families), _needed(studies.sizes), _traded(studies.strengths)]
    return tuple(sentence for sentence in found if sentence)


def _unseen(rows: Sequence[UnseenFamily]) -> str:
    own = [row for row in rows if row.defense == CARE and row.against is not None]
    if not own:
        return ""
    worst = max(own, key=_more)
    assert worst.against is not None
    change, found = worst.against.change, sum(map(_is_found, own))
    others = [row for row in rows if row.against is not None and not _is_cares(row.defense)]
    beside = ""
    if others:
        most = max(others, key=_more)
        beside = (
            f"; of the rivals {most.defense} lets the most more through, "
            f"{100 * _more(most):+.0f} points of {most.family}"
        )
    return (
        f"Fitted without a family, CARE lets at most {100 * change.rate:+.0f} points "
        f"[{100 * change.low:+.0f}, {100 * change.high:+.0f}] more of it through, of {worst.family}"
        f"{beside}. That CARE lets more of a family through which it hasn't seen is found here for "
        f"{found} of {len(own)} families (p < {LEVEL}, Holm)."
    )


def _needed(points: Sequence[FittedOn]) -> str:
    own = [point for point in points if point.defense == CARE]
    fitted = [point for point in own if point.asr is not None]
    if not fitted:
        return "" if not own else "CARE couldn't be fitted on any number of requests."
    told = ", ".join(f"{_rate(p.asr)} on {p.most}" for p in fitted)
    unfit = [str(p.most) for p in own if p.asr is None]
    without = f" It can't be fitted on {' or '.join(unfit)}." if unfit else ""
    return (
        f"By the requests of each class that CARE is fitted on, its mean ASR is {told}; of "
        f"harmless requests it answers {', '.join(_rate(p.answered) for p in fitted)}.{without}"
    )


def _traded(points: Sequence[AtStrength]) -> str:
    by_defense: dict[str, list[AtStrength]] = {}
    for point in points:
        by_defense.setdefault(point.defense, []).append(point)
    told = [
        f"{name} from {_rate(part[0].asr)} to {_rate(part[-1].asr)}, answering "
        f"{_rate(part[0].answered)} and {_rate(part[-1].answered)} of harmless requests"
        for name, part in by_defense.items()
    ]
    if not told:
        return ""
    first, last = points[0].factor, max(point.factor for point in points)
    return (
        f"From {first:g} to {last:g} times its strength, ASR on validation goes: {'; '.join(told)}."
    )


def _is_cares(name: str) -> bool:
    return name == CARE or name.startswith(f"{CARE}: ")


def _more(row: UnseenFamily) -> float:
    return -1.0 if row.against is None else row.against.change.rate


def _is_found(row: UnseenFamily) -> bool:
    return row.against is not None and _more(row) > 0 and row.against.p_holm < LEVEL


def _rate(rate: RateInterval | None) -> str:
    return "none" if rate is None else f"{rate.rate:.2f}"


def merged(before: Studies | None, now: Studies, asked: Sequence[str]) -> Studies:
    """What was studied now and, of what wasn't `asked` for, before; with its sentences."""
    if before is not None:
        kept = {name: getattr(before, name) for name in STUDIES if name not in asked}
        now = replace(now, **kept)
    return replace(now, claims=study_claims(now))
