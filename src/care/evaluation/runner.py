"""Evaluate: (model × defenses × suites) to judged rows, and the rows to results.

For each suite all answers under all defenses are generated and stored (`generation`), and then,
with no defense on, the answers are judged: a judge may ask the model itself (the perplexity of an
answer), and must ask it undefended. Both halves survive a kill. Batches are cut the same way
whatever is already there, because in bfloat16 an answer can depend on its batch: a resumed run ends
with the same rows as one that was never stopped.

An example that fails becomes a row with an `error`, and so does an answer that the judge could not
judge (`rejudge` asks again without answering anew); it counts neither as safe nor as anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from care.data.digests import digest_of, example_digest, is_same
from care.data.example import Example, Suite
from care.defenses.base import Defense
from care.errors import UsageError
from care.evaluation.config import UNDEFENDED
from care.evaluation.generation import Asking, Cell, add_missing, answer_suite
from care.evaluation.results import Results
from care.evaluation.rows import AnswerRow, JudgedRow, check_rows
from care.judges.answer_matching import correct
from care.judges.base import Judge, Verdict, ask, tags_of
from care.judges.language import NOT_ENGLISH, foreign
from care.judges.refusal import certainly_refused
from care.judges.rules import rules_for
from care.models.alarms import PICTURED, Alarm
from care.models.spec import ModelSpec
from care.models.thoughts import answer_of
from care.runs.progress import Bar, silent
from care.runs.reading import valid_text
from care.runs.rows import Row, Rows
from care.runs.run import Run
from care.runs.shards import Shard
from care.typed import to_tree

if TYPE_CHECKING:
    from care.models.vlm import VLM


def evaluate(
    vlm: VLM,
    suites: Sequence[Suite],
    defenses: Sequence[Defense | tuple[str, Defense | None] | None] = (None,),
    *,
    judge: Judge | None = None,
    run: Run | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    stop: Callable[[str], bool] | None = None,
    temperature: float = 0.0,
    progress: Bar | None = None,
    hold_to_defenses: bool = True,
    only: Mapping[str, Collection[str]] | None = None,
    shard: Shard | None = None,
) -> Results:
    """Answer every example of every suite under every defense, judge the answers, tabulate them.

    `defenses` may give a defense another name as ("name", defense); None is the bare model, called
    "none". Without a `judge`, the offline rules judge as `care evaluate` does, and an answer ends
    where it certainly refused. Answers are greedy unless `temperature` is positive, and then drawn
    by `seed` and example; `stop` ends one early (see `VLM.generate`).
    `batch_size` and `max_new_tokens` are by default those of `ModelSpec`. With a `run`, what is
    already in it isn't done again, examples that failed included. `progress` makes the bar:
    `care.runs.progress.Progress` itself, or anything called the same way; None shows nothing.
    A defense that says by `digest()` what it does must be the same at every attempt of a run,
    unless `hold_to_defenses` is False (for those fitted anew, which are equal up to rounding).
    `only` names, by name of a defense, the suites that it is asked; others are asked all. Of a
    `shard` only its batches are asked: the n-th of all suites under every defense.

    Returns the results of this call's rows, suite by suite, in the order of the examples. A row is
    a dict with the fields of `care.evaluation.rows.JudgedRow`.

    Raises: UsageError for no suite or defense, a name used twice, or a run that holds another
    example under the same key or another defense under the same name; StorageError when the disk is
    full (what was there stays). An error that isn't about one example (a site that doesn't exist, a
    whole batch failing) is raised.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    cells = [
        cell
        for cell in _cells(suites, defenses, seed)
        if only is None or cell.suite.name in only.get(cell.name, [cell.suite.name])
    ]
    spec = ModelSpec(vlm.name)
    if judge is None:
        judge, stop = rules_for(spec), stop or certainly_refused
    batch_size, max_new_tokens = spec.batch(batch_size), spec.answer_length(max_new_tokens)
    answers, results = (Rows(), Rows()) if run is None else (run.answers, run.results)
    keys = [cell.key(example) for cell in cells for example in cell.examples]
    for cell in cells:
        _check_same(cell, results, JudgedRow)
        _check_same(cell, answers, AnswerRow)
    if run is not None and hold_to_defenses:
        given = {cell.name: digest_of(cell.defense) for cell in cells}
        run.pin("defenses", {name: told for name, told in given.items() if told is not None})

    asking = Asking(vlm, batch_size, max_new_tokens, seed, stop, temperature)
    by_suite = [[cell for cell in cells if cell.suite is suite] for suite in suites]
    batches = _batches([found for found in by_suite if found], vlm, batch_size, shard)
    if shard is not None:
        own = {
            cell.key(e) for of_suite, chunks in batches for cell in of_suite for e in chain(*chunks)
        }
        keys = [key for key in keys if key in own]
    done = sum(key in results or key in answers for key in keys)
    with (progress or silent)("answers", len(keys), done=done) as bar:
        for of_suite, chunks in batches:
            answer_suite(of_suite, chunks, asking, answers, results, bar)
            for cell in of_suite:
                for chunk in chunks:
                    if cell.missing(chunk, results):
                        add_missing(results, _judge(cell, chunk, judge, answers))
    return Results([results.get(key) or {} for key in keys])


_Batches = list[tuple[list[Cell], list[list[Example]]]]
"""Of each suite its cells, and the batches of examples that are asked."""


def _batches(by_suite: Sequence[list[Cell]], vlm: VLM, size: int, shard: Shard | None) -> _Batches:
    found: _Batches = []
    place = 0
    for cells in by_suite:
        chunks = cells[0].chunks(vlm, size)
        places = range(place, place := place + len(chunks))
        if shard is not None:
            chunks = [c for n, c in zip(places, chunks, strict=True) if shard.takes(n)]
        found.append((cells, chunks))
    return found


def _cells(
    suites: Sequence[Suite],
    defenses: Sequence[Defense | tuple[str, Defense | None] | None],
    seed: int,
) -> list[Cell]:
    """Every suite under every defense, checked for names that occur twice."""
    if not suites or not defenses:
        raise UsageError(
            f"There is nothing to evaluate: {len(suites)} suites and {len(defenses)} defenses "
            "were passed; pass at least one of each (the defense None is the bare model)."
        )
    named = [_named(defense) for defense in defenses]
    cells = [Cell(suite, name, defense, seed) for suite in suites for name, defense in named]
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
    if defense is not None and not isinstance(defense, Defense):
        raise UsageError(
            f"A defense is an instance of care.defenses.Defense, but got {defense!r:.80}; pass a "
            "repair, another defense, or None for the bare model."
        )
    return valid_text(name or (UNDEFENDED if defense is None else defense.name)), defense


def _check_same(cell: Cell, rows: Rows, kind: type) -> None:
    for example in cell.examples:
        row = rows.get(cell.key(example))
        if row is None:
            continue
        check_rows(kind, [row], rows.path or "the run")
        if row.get("digest") is None:
            raise UsageError(
                f"The run holds an answer to {row['key']!r} of an earlier version of care, which "
                "didn't record what exactly was asked; start a new run."
            )
        if not is_same(row, example):
            raise UsageError(
                f"The run holds another example as {row['key']!r} (another prompt, goal, kind, "
                "picture, reference, category or system message); evaluate the same suites or "
                "start a new run."
            )


# --- judgements -----------------------------------------------------------------------------------


def _judge(cell: Cell, examples: list[Example], judge: Judge, answers: Rows) -> list[Row]:
    """Rows of one batch, from its stored answers."""
    stored = {e.id: answers.get(cell.key(e)) or {} for e in examples}
    answered = [e for e in examples if stored[e.id]["error"] is None]
    responses = [stored[e.id]["response"] for e in answered]
    goals, openings = [e.goal or e.prompt for e in answered], [e.opening for e in answered]
    begun = openings if any(openings) else ()
    verdicts = ask(judge, goals, responses, openings=begun) if answered else []
    tags = tags_of(judge)
    marks = {
        example.id: mark(example, answer_of(response, tags), verdict)
        for example, response, verdict in zip(answered, responses, verdicts, strict=True)
    }
    alarms = {
        e.id: tuple(Alarm(**each) for each in stored[e.id].get("alarms", ())) for e in examples
    }
    nothing = {"outcome": None, "correct": None}
    return [
        to_tree(
            JudgedRow(
                key=cell.key(e),
                digest=example_digest(e),
                suite=cell.suite.name,
                role=cell.suite.role,
                example=e.id,
                kind=e.kind,
                category=e.category,
                defense=cell.name,
                seed=cell.seed,
                prompt=e.prompt,
                goal=e.goal,
                opening=e.opening,
                response=stored[e.id]["response"],
                source=stored[e.id].get("source", "model"),
                alarms=alarms[e.id],
                lost_pictures=bool(e.images)
                and any(a.monitor in ("request", PICTURED) for a in alarms[e.id]),
                **{"error": stored[e.id]["error"]} | nothing | marks.get(e.id, {}),
            )
        )
        for e in examples
    ]


def mark(example: Example, answer: str | None, verdict: Verdict) -> Row:
    """{outcome, correct} of an answer without its thoughts, or {error} where there is no judgement.

    A reference answers for itself in any language: where it decides, it decides there too.
    """
    right = None
    if example.references:
        right = (
            answer is not None
            and not verdict.degenerate
            and bool(correct(example.references, answer, example.prompt))
        )
    why = verdict.failure(example.kind)
    if why is None:
        return {"outcome": verdict.outcome(example.kind), "correct": right}
    in_its_language = right or any(map(foreign, example.references))
    if why.startswith(NOT_ENGLISH) and example.references and in_its_language:
        return {"outcome": "safe", "correct": right}
    return {"error": f"No judgement: {why}"}
