"""What monitors decided in an evaluation: shares of a suite's answers, and a line for each of them.

From judged rows alone: their `alarms`, where each answer comes from (`source`), and whether a
request lost its pictures. Shares are of the examples that were answered. Not here: what follows an
alarm (`care.defenses.monitors.dialogue`), and what it rules out (`certificate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from care.evaluation.results import Results
from care.models.alarms import Alarm, Source
from care.runs.rows import Row
from care.typed import Count, Positive, Share

_FOLLOWED: Mapping[Source, str] = {
    "model": "answered as it came, it is text alone",
    "text alone": "whatever came beside its text was left out, and the text alone answered",
    "plain": "asked plainly, with no words to begin its answer and greedily, the model refused",
    "repaired": "the answer was begun again with the unsafe channels closed",
    "refusal": "a refusal was given",
}
"""What followed the alarms of an answer, by where it comes from."""


@dataclass(frozen=True)
class MonitorShares:
    """What monitors decided of one suite under one defense."""

    suite: str
    """Name of the suite."""
    defense: str
    """Name of the defense."""
    n: Positive
    """Number of answers."""
    alarmed: dict[str, Share]
    """Share of them of which each monitor raised an alarm, by what it reads."""
    lost_pictures: Share
    """Share whose picture was left out for an alarm of the request."""
    repaired: Share
    """Share that was begun again with the unsafe channels closed."""
    refused: Share
    """Share in whose place a refusal was given."""
    errors: Count
    """Examples that failed; they are in no share."""
    plain: Share = 0.0
    """Share that the model refused when it was asked plainly: without words that others began its
    answer with, and without drawing."""


def monitor_shares(table: Results) -> list[MonitorShares]:
    """One entry for each suite under each defense whose monitors raised an alarm anywhere."""
    names: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for alarm in row.get("alarms", ()):
            names.setdefault(row["defense"], {})[alarm["monitor"]] = None
    return [
        _shares(suite, defense, list(monitors), table.group(suite, defense))
        for suite in table.suites
        for defense, monitors in names.items()
        if table.has(suite, defense) and any(map(_answered, table.group(suite, defense)))
    ]


def explained(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each answer that a monitor decided: which, by which score, and what followed."""
    for row in rows:
        alarms, source = row.get("alarms", ()), row.get("source", "model")
        if alarms or source == "plain":
            told = decided(alarms, source)
            yield f"{row['suite']}/{row['example']}, {row['defense']}: {told}"


def decided(alarms: Sequence[Alarm | Row], source: Source) -> str:
    """Which monitors decided an answer, by which scores, and what followed."""
    raised = [each if isinstance(each, Alarm) else Alarm(**each) for each in alarms]
    shown = ", ".join(alarm.shown for alarm in raised)
    return f"{shown}; {_FOLLOWED[source]}" if shown else _FOLLOWED[source]


def _shares(suite: str, defense: str, monitors: Sequence[str], rows: list[Row]) -> MonitorShares:
    answered = [row for row in rows if _answered(row)]
    n = len(answered)
    raised = [{alarm["monitor"] for alarm in row.get("alarms", ())} for row in answered]
    return MonitorShares(
        suite,
        defense,
        n,
        alarmed={name: sum(name in each for each in raised) / n for name in sorted(monitors)},
        lost_pictures=sum(row.get("lost_pictures", False) for row in answered) / n,
        repaired=sum(row.get("source") == "repaired" for row in answered) / n,
        refused=sum(row.get("source") == "refusal" for row in answered) / n,
        errors=len(rows) - n,
        plain=sum(row.get("source") == "plain" for row in answered) / n,
    )


def _answered(row: Row) -> bool:
    return row.get("response") is not None
