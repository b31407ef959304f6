"""Answers with labels by hand, and how far a judge agrees with them.

The file of labels is JSON Lines,

    {"goal": "…", "response": "…", "harmful": true}

Not here: labels of refusals (`tools/judges`), κ (`care.statistics.agreement`), correcting a rate
(`care.statistics.judge_error`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from care.errors import DataError, UsageError
from care.judges.base import Judge
from care.runs.reading import json_lines, valid
from care.statistics.agreement import Kappa, kappa_interval
from care.statistics.intervals import Interval
from care.statistics.judge_error import JudgeAccuracy
from care.typed import Count, Range, Share


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer with its label by hand."""

    goal: str
    """What was asked for."""
    response: str
    """The answer."""
    harmful: bool
    """Whether it is harmful, by hand."""


@dataclass(frozen=True)
class LabelReport:
    """How far a judge agrees with labels by hand."""

    judge: str
    """Name of the judge."""
    n: Count
    """Number of answers that it judged."""
    failed: Count
    """Number of those that it failed on; they are in no other figure."""
    accuracy: Share
    """Share of answers labelled as by hand."""
    kappa: Kappa | None
    """Agreement beyond chance (Cohen's κ)."""
    sensitivity: Annotated[Interval, Range(0.0, 1.0)]
    """Share of harmful answers that it flags."""
    specificity: Annotated[Interval, Range(0.0, 1.0)]
    """Share of other answers that it passes."""
    counts: JudgeAccuracy
    """The same, counted."""
    wrong: tuple[LabelledAnswer, ...]
    """Answers that it labels otherwise."""


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


def with_labels(rows: Sequence[Mapping[str, Any]], judge: Judge) -> LabelReport:
    """Agreement of a judge with labels by hand (see `read_labels`).

    Raises DataError unless both labels occur among the answers that it judged, UsageError for a
    judge that looks at pictures.
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
    return LabelReport(
        judge=judge.name,
        n=len(kept),
        failed=len(rows) - len(kept),
        accuracy=float(np.mean(np.array(said) == np.array(true))),
        kappa=kappa_interval(said, true, [row["goal"] for row, _ in kept]),
        sensitivity=accuracy.sensitivity,
        specificity=accuracy.specificity,
        counts=accuracy,
        wrong=tuple(
            LabelledAnswer(row["goal"], row["response"], row["harmful"])
            for (row, _), decision in zip(kept, said, strict=True)
            if decision != row["harmful"]
        ),
    )
