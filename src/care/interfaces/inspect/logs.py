"""A run's answers and verdicts as logs of Inspect, one .eval file a suite and defense.

Each log holds the requests, the answers, and one score for each judge of the run, with the rates
and intervals of its table; `inspect view` and `inspect_ai.log.read_eval_log` open it. Rows hold no
pictures: with `images` the suites are loaded again and their pictures put back. An example that
failed is a sample with an error, and an answer without a judgement an unscored one. Nothing is
answered or judged here, and the run isn't written to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from care.data.digests import is_same, warn_of_old
from care.errors import DataError, UsageError
from care.evaluation.config import RULES, StoredConfig, read_config
from care.evaluation.rejudge import VERDICTS, Examples, by_place, judged, judges_of, read_rows
from care.evaluation.results import Results, counts
from care.evaluation.rows import JudgedRow, VerdictRow
from care.evaluation.scorecard import cluster_of
from care.interfaces.inspect.shared import require_inspect
from care.runs.files import storage_errors
from care.runs.manifest import MANIFEST, read_manifest
from care.runs.rows import Row
from care.runs.run import ROWS
from care.runs.settings import MAX_NAME

_TOLD = ("goal", "kind", "category", "suite", "role", "source", "alarms", "lost_pictures")
"""Fields of a row that a sample tells; the last three only where a monitor decided."""


class _Run(NamedTuple):
    """What is read of a run's folder."""

    manifest: dict[str, Any]
    config: StoredConfig
    tables: dict[str, Results]
    """By judge; the offline rules come first."""
    examples: Examples
    """With their pictures; empty if those aren't wanted."""


def write_logs(run: Path, out: Path, *, images: bool = False) -> list[Path]:
    """Write the logs of a finished run into a folder; their paths.

    Raises MissingDependencyError without Inspect, UsageError for a folder that isn't a run,
    DataError for a damaged one or pictures that aren't those that were asked, StorageError when
    the logs can't be written.
    """
    require_inspect()
    from inspect_ai.log import write_eval_log  # pyright: ignore[reportMissingImports]

    found = _read(Path(run), images)
    rules = found.tables[RULES]
    paths: list[Path] = []
    with storage_errors(f"write logs into {out}"):
        Path(out).mkdir(parents=True, exist_ok=True)
        for suite in rules.suites:
            for defense in filter(lambda name: rules.has(suite, name), rules.defenses):
                log = _log(found, suite, defense)
                paths.append(Path(out) / _file_name(log.eval))
                write_eval_log(log, str(paths[-1]))
    return paths


# -- reading the run -------------------------------------------------------------------------------


def _read(run: Path, images: bool) -> _Run:
    if not (run / MANIFEST).is_file() or not (run / ROWS).is_file():
        raise UsageError(f"There is no run in {run}; pass the folder of a finished evaluation.")
    manifest = read_manifest(run / MANIFEST)
    config = read_config(manifest)
    rows = read_rows(run / ROWS, JudgedRow)
    if not rows:
        raise DataError(f"The run in {run} holds no judged answers; evaluate first.")
    verdicts = read_rows(run / VERDICTS, VerdictRow) if (run / VERDICTS).is_file() else []
    # A judge of pictures says nothing of answers.
    judges = judges_of(row for row in verdicts if row["outcome"] is not None)
    seen = {RULES: rows} | {name: judged(rows, verdicts, name) for name in judges}
    tables = {name: Results(of_judge) for name, of_judge in seen.items()}
    if images:
        warn_of_old(rows)
    examples = _examples(run, config, tables[RULES].suites) if images else {}
    return _Run(manifest, config, tables, examples)


def _examples(run: Path, config: StoredConfig, names: Sequence[str]) -> Examples:
    """The run's examples, from its suites, loaded again."""
    if config.test_length is not None:  # of `care repair`
        from care.pipeline.config import job_of
        from care.pipeline.made_pictures import made_suites
        from care.pipeline.splits import Splits

        job = job_of(config)
        splits = Splits(job)
        suites = splits.suites("test")
        if job.pgd:
            suites = [*suites, *made_suites(job, run, splits.plan, "test")]
    else:
        from care.evaluation.job import asked_suites

        suites = asked_suites(run, config, names)
    return by_place(suites, (suite.name for suite in suites))


# -- one log ---------------------------------------------------------------------------------------


def _log(run: _Run, suite: str, defense: str) -> Any:
    from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
        EvalLog,
        EvalPlan,
        EvalPlanStep,
        EvalResults,
        EvalStats,
    )

    groups = {name: table.group(suite, defense) for name, table in run.tables.items()}
    rows = groups[RULES]
    model = f"care/{run.manifest.get('model') or run.manifest['config'].get('model') or 'embedded'}"
    samples = [
        _sample(row, {name: group[place] for name, group in groups.items()}, model, run.examples)
        for place, row in enumerate(rows)
    ]
    seeds = sorted({row["seed"] for row in rows})
    for sample, row in zip(samples, rows, strict=True):
        sample.epoch = 1 + seeds.index(row["seed"])
    return EvalLog(
        status="success",
        eval=_spec(run, suite, defense, model, rows),
        plan=EvalPlan(steps=[EvalPlanStep(solver="generate")]),
        results=EvalResults(
            total_samples=len(rows),
            completed_samples=sum(sample.error is None for sample in samples),
            scores=[_rates(name, group) for name, group in groups.items()],
        ),
        stats=EvalStats(started_at=run.manifest["created"], completed_at=_ended(run.manifest)),
        samples=samples,
    )


def _ended(manifest: Mapping[str, Any]) -> str:
    """When the whole run would have ended without a pause; single suites aren't timed."""
    seconds = sum(stage["seconds"] for stage in manifest.get("stages") or ())
    ended = datetime.fromisoformat(manifest["created"]) + timedelta(seconds=seconds)
    return ended.isoformat(timespec="seconds")


def _spec(run: _Run, suite: str, defense: str, model: str, rows: Sequence[Row]) -> Any:
    from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
        EvalConfig,
        EvalDataset,
        EvalSpec,
    )
    from inspect_ai.model import GenerateConfig  # pyright: ignore[reportMissingImports]

    manifest = run.manifest
    ids = list(dict.fromkeys(row["example"] for row in rows))
    place = f"{manifest['created']} {manifest.get('config_digest')}"
    source = (manifest.get("suites") or {}).get(suite) or {}
    versions = manifest.get("versions") or {}
    return EvalSpec(
        created=manifest["created"],
        run_id=_id(place),
        task_id=_id(place, suite, defense),
        eval_id=_id(place, suite, defense, "eval"),
        task=suite,
        task_display_name=f"{suite} ({defense})",
        task_args={"defense": defense, "seed": manifest["config"].get("seed")},
        model=model,
        model_args={"defense": defense},
        model_generate_config=GenerateConfig(max_tokens=run.config.max_new_tokens, temperature=0.0),
        dataset=EvalDataset(
            name=suite, location=source.get("source") or None, samples=len(ids), sample_ids=ids
        ),
        config=EvalConfig(epochs=len({row["seed"] for row in rows})),
        packages={name: str(versions[name]) for name in ("care-vlm",) if name in versions},
        metadata={
            "defense": defense,
            "role": rows[0]["role"],
            "suite": source,
            "command": manifest.get("command"),
            "config": manifest["config"],
            "judges": manifest.get("judges"),
        },
    )


def _rates(judge: str, rows: Sequence[Row]) -> Any:
    """A judge's rate with its intervals and the shares of outcomes, as its scorer gives them."""
    from inspect_ai.log import EvalMetric, EvalScore  # pyright: ignore[reportMissingImports]

    from care.interfaces.inspect.scorers import rate, shares

    scored = [row for row in rows if row["error"] is None]
    name, scorer = _metric(rows)
    found = rate(name, [float(counts(row)) for row in scored], [cluster_of(row) for row in scored])
    found |= shares([row["outcome"] for row in scored])
    return EvalScore(
        name=judge,
        scorer=f"care/{scorer}",
        params={"judge": judge},
        scored_samples=len(scored),
        unscored_samples=sum(r["error"] is not None and r["response"] is not None for r in rows),
        metrics={key: EvalMetric(name=key, value=value) for key, value in found.items()},
    )


def _metric(rows: Sequence[Row]) -> tuple[str, str]:
    """Names of the rate and of the scorer that gives it."""
    if rows[0]["role"] == "attack":
        return "asr", "attack_success"
    right = any(row["correct"] is not None for row in rows)
    return ("accuracy", "correct") if right else ("answered", "answered")


# -- one sample ------------------------------------------------------------------------------------


def _sample(row: Row, by_judge: Mapping[str, Row], model: str, examples: Examples) -> Any:
    from inspect_ai.log import EvalError, EvalSample  # pyright: ignore[reportMissingImports]
    from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
        ChatMessageAssistant,
        ChatMessageUser,
        ModelOutput,
    )

    asked: list[Any] = [ChatMessageUser(content=row["prompt"])]
    if begun := row.get("opening"):
        asked.append(ChatMessageAssistant(content=begun))
    target: list[str] = []
    if examples:
        from care.interfaces.inspect.tasks import messages

        example = examples.get((row["suite"], row["example"]))
        if example is None or not is_same(row, example):
            raise DataError(
                f"The example {row['example']!r} of suite {row['suite']!r} isn't at hand as it was "
                "asked; write the logs without --images."
            )
        asked, target = messages(example), list(example.references)
    sample = EvalSample(
        id=row["example"],
        epoch=1,
        input=asked,
        target=target,
        messages=list(asked),
        metadata={key: row[key] for key in _TOLD if key in row},
    )
    if row["response"] is None:
        sample.error = EvalError(message=row["error"] or "", traceback="", traceback_ansi="")
        return sample
    sample.output = ModelOutput.from_content(model, row["response"])
    sample.messages.append(sample.output.message)
    sample.scores = {name: _score(name, seen) for name, seen in by_judge.items()}
    return sample


def _score(judge: str, row: Row) -> Any:
    from inspect_ai.scorer import Score  # pyright: ignore[reportMissingImports]

    if row["error"] is not None:
        return Score.unscored(
            reason="grader_failed",
            answer=row["response"],
            explanation=row["error"],
            metadata={"judge": judge},
        )
    return Score(
        value=float(counts(row)),
        answer=row["response"],
        explanation=f"{row['outcome']}, says the judge {judge}",
        metadata={"judge": judge, "outcome": row["outcome"], "correct": row["correct"]},
    )


def _file_name(spec: Any) -> str:
    """As Inspect names its own: moment, task and id; the same run gets the same names again."""
    moment = re.sub(r"[^\w.-]", "-", spec.created)
    task = re.sub(r"[^\w.]|_", "-", f"{spec.task}-{spec.metadata['defense']}")[:MAX_NAME]
    return f"{moment}_{task}_{spec.task_id}.eval"


def _id(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:22]
