"""How far two lists of labels agree beyond chance, with an interval that resamples goals.

    κ = (p₀ − pₑ) / (1 − pₑ)      (Cohen 1960)

Wordings of one goal are labelled alike, so goals are resampled, not rows. Two judges that agree can
be wrong together: only labels by hand say which to trust (`care.judges.labels`).

Not here: correcting a rate for a judge's errors (`judge_error`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any

import numpy as np

from care.errors import UsageError
from care.statistics.bootstrap import draw, percentiles
from care.statistics.intervals import Interval
from care.typed import Count, Range, Share

RESAMPLES, PART = 2000, 100

Kappa = Annotated[Interval, Range(-1.0, 1.0)]
"""Cohen's κ with its limits."""


@dataclass(frozen=True)
class JudgeAgreement:
    """How far two judges agree on the rows that both judged."""

    judges: tuple[str, str]
    """Their names."""
    n: Count
    """Number of rows."""
    agreement: Share
    """Share of rows with the same label."""
    kappa: Kappa | None
    """Agreement beyond chance; none where both labels are the same constant."""


def kappa_interval(
    first: Sequence[Any],
    second: Sequence[Any],
    goals: Sequence[str] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Cohen's κ of two lists of N labels, with limits that resample goals.

    None where κ is undefined: both sides are the same constant. Raises UsageError for unequal
    lengths or no labels.
    """
    if len(first) != len(second) or not len(first):
        raise UsageError(
            f"κ needs two lists of labels of one length, got {len(first)} and {len(second)}."
        )
    goals = [str(i) for i in range(len(first))] if goals is None else goals
    names = sorted({str(label) for label in (*first, *second)})
    groups = {goal: place for place, goal in enumerate(dict.fromkeys(goals))}
    tables = np.zeros((len(groups), len(names), len(names)))
    for a, b, goal in zip(first, second, goals, strict=True):
        tables[groups[goal], names.index(str(a)), names.index(str(b))] += 1
    point = float(_kappas(tables.sum(axis=0)[None])[0])
    if not np.isfinite(point):
        return None
    rng = np.random.default_rng(seed)
    # In parts: with many goals all draws at once would take gigabytes.
    parts = (draw(len(groups), PART, rng) for _ in range(RESAMPLES // PART))
    values = np.concatenate([_kappas(np.tensordot(part, tables, axes=1)) for part in parts])
    low, high = percentiles(values, level) if np.isfinite(values).any() else (point, point)
    return Interval(point, min(point, low), max(point, high), len(first))


def between_judges(
    columns: Mapping[str, Mapping[str, Any]], goals: Mapping[str, str]
) -> list[JudgeAgreement]:
    """Agreement of every two judges on the rows that both judged.

    `columns` has for each judge its label of each row by the row's key, `goals` the goal of each
    row.
    """
    found: list[JudgeAgreement] = []
    for first, second in combinations(columns, 2):
        keys = [key for key in columns[first] if key in columns[second]]
        if not keys:
            continue
        a, b = ([columns[name][key] for key in keys] for name in (first, second))
        found.append(
            JudgeAgreement(
                judges=(first, second),
                n=len(keys),
                agreement=float(np.mean([x == y for x, y in zip(a, b, strict=True)])),
                kappa=kappa_interval(a, b, [goals[key] for key in keys]),
            )
        )
    return found


def _kappas(tables: np.ndarray) -> np.ndarray:
    """κ (R,) of contingency tables (R, C, C); NaN where it is undefined."""
    total = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / total
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / total**2
    room = 1.0 - chance
    return np.divide(observed - chance, room, out=np.full_like(room, np.nan), where=room > 1e-12)
