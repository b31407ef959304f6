"""Evaluate: (model × defenses × suites) to judged rows, and the rows to a table.

For each suite and defense the defense is applied once, all answers are generated and stored, the
defense is taken off, and only then the answers are judged: a judge may ask the model itself (the
perplexity of an answer), and must ask it undefended. Both halves survive a kill. Batches are cut
the same way whatever is already there, because in bfloat16 an answer can depend on its batch: a
resumed run ends with the same rows as one that was never stopped.

An example that fails becomes a row with an `error`; it counts neither as safe nor as anything else.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from care.errors import CareError, DataError, UsageError
from care.examples import Example, Suite
from care.judges import Judge, correct
from care.progress import Progress
from care.rows import Row, Rows
from care.runs import Run
from care.table import Comparison, Table

if TYPE_CHECKING:
    from care.defenses import Defense
    from care.vlm import VLM

__all__ = ["Comparison", "Table", "evaluate"]

Generate = Callable[[list[Example]], list[str]]

UNDEFENDED = "none"
"""Name of the defense None in rows and tables."""


def evaluate(
    vlm: VLM,
    suites: Sequence[Suite],
    defenses: Sequence[Defense | tuple[str, Defense | None] | None],
    *,
    judge: Judge,
    run: Run | None = None,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    stop: Callable[[str], bool] | None = None,
    progress: Callable[..., Progress] | None = None,
) -> Table:
    """Answer every example of every suite under every defense, judge the answers, tabulate them.

    `defenses` may give a defense another name as ("name", defense); None is the bare model, called
    "none". Answers are greedy; `stop` ends one early (see `VLM.generate`). With a `run`, what is
    already in it isn't done again, examples that failed included. `progress` makes the bar:
    `care.progress.Progress` itself, or anything called the same way; None shows nothing.

    Returns the table of this call's rows, suite by suite, in the order of the examples. A row is
    {key, suite, role, example, kind, category, defense, seed, prompt, goal, response, outcome,
    correct, error}; its key is suite/example/defense/seed. For a failed example response and
    outcome are None; correct is None also where an example has no reference answers.

    Raises: UsageError for no suite or defense, a name used twice, or a run that holds another
    example under the same key; StorageError when the disk is full (what was there stays). An error
    that isn't about one example (a site that doesn't exist, a whole batch failing) is raised.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    cells = _cells(suites, defenses, seed)
    answers, results = (Rows(), Rows()) if run is None else (run.answers, run.results)
    keys = [cell.key(example) for cell in cells for example in cell.examples]
    for cell in cells:
        _check_same(cell, results)

    def generate(examples: list[Example]) -> list[str]:
        return vlm.generate(
            examples, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed, stop=stop
        )

    done = sum(key in results for key in keys)
    with (progress or _silent)("answers", len(keys), done=done) as bar:
        for cell in cells:
            bar.advance(0, note=f"{cell.suite.name}, {cell.name}")
            todo = [chunk for chunk in cell.chunks(batch_size) if cell.missing(chunk, results)]
            unanswered = [chunk for chunk in todo if cell.missing(chunk, answers)]
            with _applied(cell.defense if unanswered else None, vlm):
                for chunk in todo:
                    if chunk in unanswered:
                        found = _answers(generate, chunk)
                        _add_missing(answers, [{"key": cell.key(e)} | found[e.id] for e in chunk])
                    bar.advance(cell.missing(chunk, results))
            for chunk in todo:
                _add_missing(results, _judge(cell, chunk, judge, answers))
    return Table([results.get(key) or {} for key in keys])


@dataclass(frozen=True)
class _Cell:
    """One suite under one defense."""

    suite: Suite
    name: str
    defense: Defense | None
    seed: int

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.suite.examples

    def key(self, example: Example) -> str:
        return f"{self.suite.name}/{example.id}/{self.name}/{self.seed}"

    def missing(self, examples: Sequence[Example], rows: Rows) -> int:
        return sum(self.key(example) not in rows for example in examples)

    def chunks(self, size: int) -> list[list[Example]]:
        """The examples in batches of similar length, the same ones whatever is done already."""
        by_length = sorted(self.examples, key=lambda e: (len(e.images), len(e.prompt)))
        return [by_length[i : i + size] for i in range(0, len(by_length), size)]


def _cells(
    suites: Sequence[Suite],
    defenses: Sequence[Defense | tuple[str, Defense | None] | None],
    seed: int,
) -> list[_Cell]:
    """Every suite under every defense, checked for names that occur twice."""
    if not suites or not defenses:
        raise UsageError(
            f"There is nothing to evaluate: {len(suites)} suites and {len(defenses)} defenses "
            "were passed; pass at least one of each (the defense None is the bare model)."
        )
    named = [_named(defense) for defense in defenses]
    cells = [_Cell(suite, name, defense, seed) for suite in suites for name, defense in named]
    keys = Counter(cell.key(example) for cell in cells for example in cell.examples)
    key, count = keys.most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{count} answers would be stored as {key!r} (suite/example/defense/seed); give every "
            'suite and every defense a name of its own, as in ("name", defense).'
        )
    return cells


def _named(
    defense: Defense | tuple[str, Defense | None] | None,
) -> tuple[str, Defense | None]:
    name, defense = defense if isinstance(defense, tuple) else (None, defense)
    if defense is not None and not hasattr(defense, "applied"):
        raise UsageError(
            f"A defense needs a name and a method applied(vlm), but got {defense!r:.80}; pass a "
            "repair, a defense, or None for the bare model."
        )
    return name or (UNDEFENDED if defense is None else defense.name), defense


def _applied(defense: Defense | None, vlm: VLM) -> AbstractContextManager[object]:
    return nullcontext() if defense is None else defense.applied(vlm)


def _check_same(cell: _Cell, results: Rows) -> None:
    for example in cell.examples:
        row = results.get(cell.key(example))
        if row is not None and row["prompt"] != example.prompt:
            raise UsageError(
                f"The run holds another example as {row['key']!r} (its prompt was "
                f"{row['prompt']!r:.80}); evaluate the same suites or start a new run."
            )


# --- answers --------------------------------------------------------------------------------------


def _answers(generate: Generate, examples: list[Example]) -> dict[str, Row]:
    """For each example id {response, error}, one of them None."""
    found = {e.id: {"response": None, "error": _image_error(e)} for e in examples}
    sound = [e for e in examples if found[e.id]["error"] is None]
    if not sound:
        return found
    try:
        responses: list[str | Exception] = list(generate(sound))
    except Exception as error:
        responses = _one_by_one(generate, sound, error)
    for example, response in zip(sound, responses, strict=True):
        failed = isinstance(response, Exception)
        found[example.id] = {
            "response": None if failed else response,
            "error": _sentence(response) if failed else None,
        }
    return found


def _one_by_one(
    generate: Generate, examples: list[Example], error: Exception
) -> list[str | Exception]:
    """Find the examples to blame for the error of a batch; raise it if it isn't about examples."""
    if isinstance(error, CareError) and not isinstance(error, DataError):
        raise error
    if len(examples) == 1:
        return [error]
    results: list[str | Exception] = []
    for example in examples:
        try:
            results += generate([example])
        except Exception as single:
            results.append(single)
    if not any(isinstance(result, str) for result in results) and not isinstance(error, DataError):
        raise error
    return results


def _image_error(example: Example) -> str | None:
    """Why its images can't be used, found beforehand so that one doesn't cost a whole batch."""
    try:
        example.load_images()
    except DataError as error:
        return _sentence(error)
    return None


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# --- judgements -----------------------------------------------------------------------------------


def _judge(cell: _Cell, examples: list[Example], judge: Judge, answers: Rows) -> list[Row]:
    """Rows of one batch, from its stored answers."""
    stored = {e.id: answers.get(cell.key(e)) or {} for e in examples}
    answered = [e for e in examples if stored[e.id]["error"] is None]
    responses = [stored[e.id]["response"] for e in answered]
    verdicts = judge([e.goal or e.prompt for e in answered], responses) if answered else []
    marks: dict[str, Row] = {}
    for example, response, verdict in zip(answered, responses, verdicts, strict=True):
        outcome = verdict.outcome(example.kind)
        right = None
        if example.references:
            right = outcome != "degenerate" and correct(example.references, response)
        marks[example.id] = {"outcome": outcome, "correct": right}
    return [
        {
            "key": cell.key(e),
            "suite": cell.suite.name,
            "role": cell.suite.role,
            "example": e.id,
            "kind": e.kind,
            "category": e.category,
            "defense": cell.name,
            "seed": cell.seed,
            "prompt": e.prompt,
            "goal": e.goal,
            **stored[e.id],
            **marks.get(e.id, {"outcome": None, "correct": None}),
        }
        for e in examples
    ]


def _add_missing(rows: Rows, found: list[Row]) -> None:
    """Add the rows that aren't there; a kill can leave a part of a batch."""
    rows.add(*(row for row in found if row["key"] not in rows))


def _silent(label: str, total: int, *, done: int = 0) -> Progress:
    return Progress(label, total, done=done, every=math.inf, stream=io.StringIO())
