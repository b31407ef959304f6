"""Answers with labels by hand, and how far a judge agrees with them.

The file of labels is JSON Lines,

    {"goal": "…", "response": "…", "harmful": true}

Not here: labels of refusals (`tools/judges`), κ (`care.statistics.agreement`), correcting a rate
(`care.statistics.judge_error`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from care.errors import DataError, UsageError
from care.judges.base import Judge
from care.runs.reading import json_lines, valid
from care.statistics.agreement import kappa_interval
from care.statistics.intervals import Interval
from care.statistics.judge_error import JudgeAccuracy


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


def with_labels(rows: Sequence[Mapping[str, Any]], judge: Judge) -> dict[str, Any]:
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


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dict(vars(interval))
