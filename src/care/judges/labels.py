"""How far judges agree with one another, and with labels by hand.

    κ = (p₀ − pₑ) / (1 − pₑ)      (Cohen 1960)

with an interval that resamples goals: wordings of one goal are judged alike. Two judges that agree
can be wrong together, so only hand labels say which to trust; the file of labels is JSON Lines,

    {"goal": "…", "response": "…", "harmful": true}

Not here: labels of refusals (`tools/judges`), correcting a rate
(`care.statistics.judge_error`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from care.errors import DataError, UsageError
from care.judges.base import AnyJudge
from care.runs.reading import json_lines, valid
from care.statistics.intervals import Interval
from care.statistics.judge_error import JudgeAccuracy

RESAMPLES, PART = 2000, 100


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
            f"κ needs two lists of labels of one length, got {len(first)} and {len(second)}"
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
    shares = np.full(len(groups), 1.0 / len(groups))
    # In parts: with many goals all draws at once would take gigabytes.
    parts = (rng.multinomial(len(groups), shares, size=PART) for _ in range(RESAMPLES // PART))
    values = np.concatenate([_kappas(np.tensordot(part, tables, axes=1)) for part in parts])
    values = values[np.isfinite(values)]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail]) if len(values) else (point, point)
    return Interval(point, min(point, float(low)), max(point, float(high)), len(first))


def between_judges(
    columns: Mapping[str, Mapping[str, Any]], goals: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Agreement of every two judges on the rows that both judged.

    `columns` has for each judge its label of each row by the row's key, `goals` the goal of each
    row. JSON-ready {judges, n, agreement, kappa}, kappa None where undefined.
    """
    found = []
    for first, second in combinations(columns, 2):
        keys = [key for key in columns[first] if key in columns[second]]
        if not keys:
            continue
        a, b = ([columns[name][key] for key in keys] for name in (first, second))
        found.append(
            {
                "judges": [first, second],
                "n": len(keys),
                "agreement": float(np.mean([x == y for x, y in zip(a, b, strict=True)])),
                "kappa": _plain(kappa_interval(a, b, [goals[key] for key in keys])),
            }
        )
    return found


def read_labels(path: str | Path) -> list[dict[str, Any]]:
    """Answers with labels by hand; DataError, with its line, for one that isn't as described."""
    found = []
    for number, row in json_lines(path, "file of labels", "write one object a line"):
        if not (
            isinstance(row, dict)
            and isinstance(row.get("harmful"), bool)
            and all(isinstance(row.get(key), str) for key in ("goal", "response"))
        ):
            raise DataError(
                f"{path}, line {number}: a labelled answer is an object with the texts `goal` and "
                "`response` and a true or false `harmful`."
            )
        found.append(valid(row))
    if not found:
        raise DataError(f"{path} holds no labelled answers; write one JSON object a line.")
    return found


def with_labels(rows: Sequence[Mapping[str, Any]], judge: AnyJudge) -> dict[str, Any]:
    """Agreement of a judge with labels by hand (see `read_labels`).

    JSON-ready {judge, n, failed, accuracy, kappa, sensitivity, specificity, counts, wrong}; answers
    that the judge failed on are counted in `failed` alone. Raises DataError unless both labels
    occur among the others, UsageError for a judge that looks at pictures.
    """
    if getattr(judge, "reads_images", False):
        raise UsageError(
            f"The judge {judge.name} looks at pictures, which labelled answers don't have; pass "
            "a judge of answers."
        )
    verdicts = judge([row["goal"] for row in rows], [row["response"] for row in rows])
    kept = [(r, v) for r, v in zip(rows, verdicts, strict=True) if v.error is None]
    said = [verdict.outcome("malicious") == "harmful" for _, verdict in kept]
    true = [row["harmful"] for row, _ in kept]
    accuracy = JudgeAccuracy.of(said, true)
    kappa = kappa_interval(said, true, [row["goal"] for row, _ in kept])
    return {
        "judge": judge.name,
        "n": len(kept),
        "failed": len(rows) - len(kept),
        "accuracy": float(np.mean(np.array(said) == np.array(true))),
        "kappa": _plain(kappa),
        "sensitivity": _plain(accuracy.sensitivity),
        "specificity": _plain(accuracy.specificity),
        "counts": vars(accuracy),
        "wrong": [
            {"goal": row["goal"], "response": row["response"], "harmful": row["harmful"]}
            for (row, _), decision in zip(kept, said, strict=True)
            if decision != row["harmful"]
        ],
    }


def _kappas(tables: np.ndarray) -> np.ndarray:
    """κ (R,) of contingency tables (R, C, C); NaN where it is undefined."""
    total = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / total
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / total**2
    room = 1.0 - chance
    return np.divide(observed - chance, room, out=np.full_like(room, np.nan), where=room > 1e-12)


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dict(vars(interval))
