"""Rows of an evaluation: what answers.jsonl, rows.jsonl and verdicts.jsonl hold, field by field.

A row is made as its type and kept as a dict, as `care.runs` reads it back; `check_rows` holds what
was read to the type. Older versions wrote fewer fields and a later one may write more: those with a
default may be missing, and those that aren't named are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from care.data.example import ExampleKind, SuiteRole
from care.judges.base import Outcome
from care.models.alarms import Alarm, Source
from care.runs.rows import Row
from care.typed import WHEN_SET, Misfit, Positive, from_tree


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """A row of answers.jsonl: one answer, before it is judged."""

    key: str
    """suite/example/defense/seed."""
    digest: str | None = None
    """Digest of the example (`care.data.digests`)."""
    response: str | None
    """What was answered; none where the example failed."""
    error: str | None
    """Why there is no answer."""
    source: Annotated[Source, WHEN_SET] = "model"
    """Where the answer comes from, under a defense that owns its answers."""
    alarms: Annotated[tuple[Alarm, ...], WHEN_SET] = ()
    """What monitors raised on the way to it."""

    def check(self) -> None:
        """Misfit unless there is an answer or an error."""
        _told(self, "response")


@dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """A row of rows.jsonl: one answer, judged by the first judge."""

    key: str
    """suite/example/defense/seed."""
    digest: str | None = None
    """Digest of the example (`care.data.digests`)."""
    suite: str
    """Name of the suite."""
    role: SuiteRole
    """What the suite is for."""
    example: str
    """Id of the example."""
    kind: ExampleKind
    """Whether the request is malicious."""
    category: str
    """Category of the example."""
    defense: str
    """Name of the defense."""
    seed: int
    """Seed of the run."""
    prompt: str
    """What was asked."""
    goal: str
    """The plain goal behind it."""
    opening: Annotated[str, WHEN_SET] = ""
    """How the answer began before the model went on."""
    response: str | None
    """What was answered; none where the example failed."""
    error: str | None
    """Why there is no answer or no judgement."""
    outcome: Outcome | None
    """What became of it; none where there is no judgement."""
    correct: bool | None
    """Whether a reference agrees; none without references."""
    source: Annotated[Source, WHEN_SET] = "model"
    """Where the answer comes from, under a defense that owns its answers."""
    alarms: Annotated[tuple[Alarm, ...], WHEN_SET] = ()
    """What monitors raised on the way to it."""
    lost_pictures: Annotated[bool, WHEN_SET] = False
    """Whether an alarm of the request took its pictures away."""

    def check(self) -> None:
        """Misfit unless there is an answer with its outcome, or an error."""
        _told(self, "response")
        _told(self, "outcome")


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """A row of verdicts.jsonl: another judge on an answer, or on the request's picture."""

    key: str
    """row/judge/attempt."""
    row: str
    """Key of the answer's row in rows.jsonl."""
    judge: str
    """Name of the judge."""
    attempt: Positive
    """Number of the attempt; above 1 after failed ones."""
    outcome: Outcome | None
    """What became of the answer; none of a picture, and where there is no judgement."""
    flagged: bool | None
    """Whether it is harmful, whatever the kind of the example; none where there is no judgement."""
    refused: bool | None = None
    """Whether the answer is a full refusal."""
    degenerate: bool | None = None
    """Whether the answer is broken text."""
    score: float | None = None
    """How sure the judge is, where it gives a number."""
    label: str | None = None
    """The judge's own words, such as a category."""
    error: str | None
    """Why there is no judgement."""

    def check(self) -> None:
        """Misfit unless there is a judgement or an error."""
        _told(self, "flagged")


def _told(row: AnswerRow | JudgedRow | VerdictRow, name: str) -> None:
    if row.error is None and getattr(row, name) is None:
        raise Misfit(name, "is null, and so is `error`")


def check_rows(kind: type, rows: Iterable[Row], where: object) -> None:
    """DataError unless all rows are of the type `kind`; `where` names their file."""
    todo = "restore the file, or choose another folder"
    for row in rows:
        what = f"The row {row.get('key')!r:.80} in {where}"
        from_tree(kind, row, strict=False, what=what, todo=todo)
