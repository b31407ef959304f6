"""Judge the stored answers of a run again, with other judges and without asking the model.

Verdicts are appended to `verdicts.jsonl` in the run's folder, one `VerdictRow` for each answer and
judge. What decides a judge (model, revision, digest of its prompt) is kept in the manifest under
its name, and another judge under the same name is refused. A verdict with an `error` (a call that
failed) is kept and in no rate; `retry` asks again.

`judged` gives the run's rows as another judge sees them, so that any table can be made of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from care.data.digests import is_same, warn_of_old
from care.data.example import Example
from care.errors import CareError, DataError, UsageError
from care.evaluation.rows import JudgedRow, VerdictRow, check_rows
from care.judges.base import Judge, Verdict, ask
from care.runs.files import to_json
from care.runs.progress import Bar, silent
from care.runs.reading import json_lines
from care.runs.rows import Row, Rows
from care.runs.run import ROWS, Run
from care.typed import to_tree

VERDICTS = "verdicts.jsonl"
"""Name of the file in a run's folder."""

CHUNK = 32
"""Answers judged between two writes."""

Examples = Mapping[tuple[str, str], Example]
"""Examples by suite and id, for judges that look at pictures."""


def open_verdicts(run: Run) -> Rows:
    """The run's verdicts; close them after use. DataError for rows that are none."""
    verdicts = Rows(run.path / VERDICTS)
    try:
        check_rows(VerdictRow, verdicts.all(), run.path / VERDICTS)
    except DataError:
        verdicts.close()
        raise
    return verdicts


def rejudge(
    run: Run,
    judge: Judge,
    verdicts: Rows,
    *,
    examples: Examples | None = None,
    retry: bool = False,
    progress: Bar | None = None,
) -> int:
    """Add the verdicts of `judge` on every stored answer that it hasn't judged; how many failed.

    `examples` are needed by a judge that looks at pictures. With `retry`, answers whose last
    verdict failed are judged again. Answers that the model itself failed on are left alone.

    Raises UsageError when the run holds verdicts of another judge under this name, or there is no
    answer to judge; DataError for a picture judge without the run's examples.
    """
    check_rows(JudgedRow, run.rows(), run.path / ROWS)
    record_identity(run, judge)
    answered = [row for row in run.rows() if row.get("response") is not None]
    if not answered:
        raise UsageError(f"The run in {run.path} holds no answers to judge; evaluate first.")
    if getattr(judge, "reads_images", False):
        warn_of_old(answered)
    last = latest(verdicts.all(), judge.name)
    waiting = [row for row in answered if _waits(last.get(row["key"]), retry)]
    done = len(answered) - len(waiting)
    with (progress or silent)(f"judging, {judge.name}", len(answered), done=done) as bar:
        for start in range(0, len(waiting), CHUNK):
            chunk = waiting[start : start + CHUNK]
            found = _judge(judge, chunk, examples)
            verdicts.add(
                *(
                    _verdict_row(judge, row, verdict, last.get(row["key"]))
                    for row, verdict in zip(chunk, found, strict=True)
                )
            )
            bar.advance(len(chunk))
    return sum(v["error"] is not None for v in latest(verdicts.all(), judge.name).values())


def latest(verdicts: Iterable[Row], judge: str) -> dict[str, Row]:
    """The last verdict of a judge on each row, by the row's key."""
    return {verdict["row"]: verdict for verdict in verdicts if verdict["judge"] == judge}


def judges_of(verdicts: Iterable[Row]) -> list[str]:
    """Names of the judges, in the order in which they came."""
    return list(dict.fromkeys(verdict["judge"] for verdict in verdicts))


def judged(rows: Iterable[Row], verdicts: Iterable[Row], judge: str) -> list[Row]:
    """The rows with the outcomes of another judge; what it couldn't judge has an `error`.

    Whether an answer is correct is told by its references and stays, unless the answer is broken.
    """
    last = latest(verdicts, judge)
    found = []
    for row in rows:
        verdict = last.get(row["key"])
        if row.get("response") is None:
            found.append(dict(row))
        elif verdict is None or verdict["error"] is not None:
            why = "not asked" if verdict is None else verdict["error"]
            error = f"No judgement of {judge}: {why}"
            found.append({**row, "outcome": None, "correct": None, "error": error})
        else:
            found.append({**row, "outcome": verdict["outcome"], "error": None})
    return found


def record_identity(run: Run, judge: Judge) -> None:
    """Keep what decides the judge in the manifest; UsageError if its name stands for another."""
    facts = json.loads(to_json(judge.identity()))
    known: dict[str, Any] = dict(run.manifest.get("judges", {}))
    before = known.get(judge.name)
    if before is not None and before != facts:
        changed = sorted(
            key for key in before.keys() | facts.keys() if before.get(key) != facts.get(key)
        )
        raise UsageError(
            f"The run in {run.path} holds verdicts of another judge {judge.name!r} (its "
            f"{', '.join(changed)} differs); give this one another name with as=NAME."
        )
    if before is None:
        run.record(judges={**known, judge.name: facts})


def by_place(suites: Iterable[Iterable[Example]], names: Iterable[str]) -> Examples:
    """Examples by the name of their suite and their id."""
    return {
        (name, example.id): example
        for name, suite in zip(names, suites, strict=True)
        for example in suite
    }


def read_rows(path: Path, kind: type) -> list[Row]:
    """The rows of a finished run, without opening it for writing; DataError for others."""
    rows = Rows()
    for number, row in json_lines(path, "file of rows", "pass a run's folder"):
        try:
            rows.add(row)
        except (AttributeError, ValueError) as error:  # no object, or none with a key of its own
            raise DataError(
                f"{path}, line {number} isn't a row with a key of its own; pass a run's folder."
            ) from error
    check_rows(kind, rows.all(), path)
    return rows.all()


def _waits(verdict: Row | None, retry: bool) -> bool:
    return verdict is None or (retry and verdict["error"] is not None)


def _judge(judge: Judge, rows: Sequence[Row], examples: Examples | None) -> Sequence[Verdict]:
    """Verdicts on some answers; one that the judge fails on doesn't take the others along."""
    try:
        return _ask(judge, rows, examples)
    except CareError:
        raise  # not about one answer
    except Exception as error:
        found = [_alone(judge, row, examples) for row in rows]
        if len(rows) > 1 and all(verdict.error for verdict in found):
            raise error
        return found


def _alone(judge: Judge, row: Row, examples: Examples | None) -> Verdict:
    try:
        return _ask(judge, [row], examples)[0]
    except CareError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return Verdict(refused=False, degenerate=False, on_goal=False, error=why)


def _ask(judge: Judge, rows: Sequence[Row], examples: Examples | None) -> Sequence[Verdict]:
    goals = [row["goal"] or row["prompt"] for row in rows]
    responses = [row["response"] for row in rows]
    openings = [row.get("opening", "") for row in rows]
    begun = openings if any(openings) else ()
    if not getattr(judge, "reads_images", False):
        return ask(judge, goals, responses, openings=begun)
    images = [_pictures(row, judge.name, examples) for row in rows]
    return ask(judge, goals, responses, images, openings=begun)


def _pictures(row: Row, judge: str, examples: Examples | None) -> list[Image.Image]:
    example = (examples or {}).get((row["suite"], row["example"]))
    if example is None or not is_same(row, example):
        raise DataError(
            f"The judge {judge} looks at pictures, but the example {row['example']!r} of suite "
            f"{row['suite']!r} isn't at hand as it was asked; pass the suites of the run."
        )
    return example.load_images()


def _verdict_row(judge: Judge, row: Row, verdict: Verdict, before: Row | None) -> Row:
    attempt = 1 if before is None else before["attempt"] + 1
    about_images = getattr(judge, "subject", "answer") == "image"
    why = verdict.error if about_images else verdict.failure(row["kind"])
    flagged: bool | None = None
    if why is None:
        flagged = verdict.on_goal if about_images else verdict.outcome("malicious") == "harmful"
    found = VerdictRow(
        key=f"{row['key']}/{judge.name}/{attempt}",
        row=row["key"],
        judge=judge.name,
        attempt=attempt,
        outcome=None if why is not None or about_images else verdict.outcome(row["kind"]),
        flagged=flagged,
        refused=verdict.refused,
        degenerate=verdict.degenerate,
        score=getattr(verdict, "score", None),
        label=getattr(verdict, "label", ""),
        error=why,
    )
    return to_tree(found)
