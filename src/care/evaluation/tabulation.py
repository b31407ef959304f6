"""Judge the stored answers of a run with several judges, and put what they say into one table.

    verdicts.jsonl   the other judges' verdicts on the same answers (`rejudge`)
    table.json       the scorecard (`scorecard`)

One judge is loaded at a time, so the model must have been let go before. Not here: answers (`job`,
or the main job).
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from care.errors import DataError
from care.evaluation.adaptive import owners, threats
from care.evaluation.asked_attacks import attacks_in_variants, image_attacks
from care.evaluation.config import RULES, JudgingSpec, read_config, stored_defenses
from care.evaluation.losses import losses_in
from care.evaluation.rejudge import open_verdicts, rejudge
from care.evaluation.results import Results
from care.evaluation.rows import JudgedRow, check_rows
from care.evaluation.scorecard import scorecard
from care.evaluation.scores import RunFacts, Scorecard
from care.evaluation.variants import suites_of, variant_threats
from care.judges.labels import LabelReport, with_labels
from care.judges.registry import load_judge
from care.judges.rules import RulesJudge
from care.runs.progress import Bar
from care.runs.rows import Row, Rows
from care.runs.run import ROWS, Run
from care.typed import from_tree, to_tree

TABLE = "table.json"
"""Name of the scorecard in a run's folder."""


def judge_and_tabulate(
    run: Run,
    judging: JudgingSpec,
    rules: RulesJudge,
    labels: list[dict[str, Any]] | None,
    examples: Any,
    seed: int,
    retry: bool,
    progress: Bar | None,
) -> Scorecard:
    """Judge a run's answers with every judge there is, and write its table.json; the scorecard.

    `examples` by suite and id are for judges that look at pictures; `retry` as in `rejudge`.
    """
    reports: list[LabelReport] = []
    names: list[str] = []
    verdicts = open_verdicts(run)
    try:
        for judge_wanted in judging.judges:
            judge = load_judge(judge_wanted, rules)
            about_answers = getattr(judge, "subject", "answer") == "answer"
            if judge is not rules:
                with run.stage(f"judge {judge.name}"):
                    rejudge(run, judge, verdicts, examples=examples, retry=retry, progress=progress)
            if about_answers:
                names.append(judge.name)
                if labels and not getattr(judge, "reads_images", False):
                    reports.append(with_labels(labels, judge))
            del judge
            gc.collect()
        card = _scorecard(run, verdicts, names, reports, judging.margin, seed)
    finally:
        verdicts.close()
    for sentence in card.warnings:
        warnings.warn(sentence, stacklevel=1)
    tree = to_tree(card, "The scorecard")
    run.write(TABLE, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    return card


def _scorecard(
    run: Run,
    verdicts: Rows,
    names: Sequence[str],
    reports: Sequence[LabelReport],
    margin: float,
    seed: int,
) -> Scorecard:
    rows: list[Row] = run.rows()
    check_rows(JudgedRow, rows, run.path / ROWS)
    if not rows:
        raise DataError(f"The run in {run.path} holds no judged answers; evaluate first.")
    accuracies = {report.judge: report.counts for report in reports}
    config = read_config(run.manifest)
    in_variants, defenses = attacks_in_variants(config.adaptive), stored_defenses(config)
    images = image_attacks(config.adaptive)
    card = scorecard(
        rows,
        verdicts.all(),
        primary=names[0] if names else RULES,
        margin=margin,
        accuracies=accuracies,
        tried=suites_of(in_variants, defenses),
        images=images,
        owners={one.name: owners(run.path, one, defenses) for one in (*in_variants, *images)},
        seed=seed,
    )
    found = threats(images, run.path, defenses, card.suites)
    found += variant_threats(in_variants, run.path, defenses, card.suites)
    return replace(
        card,
        labels=tuple(reports),
        threats=tuple(found),
        losses=tuple(losses_in(run.path, defenses)),
        run=run_facts(run),
        warnings=tuple(_broken(rows)),
    )


def run_facts(run: Run) -> RunFacts:
    """What a table says of its run; DataError for a manifest that it can't be made of."""
    return from_tree(RunFacts, run.manifest, strict=False, what="The manifest of the run")


def _broken(rows: list[Row]) -> list[str]:
    """A sentence for each defense whose answers are no answers, which a rate doesn't show."""
    cells: dict[str, list[str]] = {}
    table = Results(rows)
    for suite, defense in table.broken():
        cells.setdefault(defense, []).append(suite)
    failed = [
        f"No answer under {defense} to {suite} could be judged; the errors are in its rows."
        for suite in table.suites
        for defense in table.defenses
        if table.has(suite, defense)
        and table.errors(suite, defense)
        and not sum(table.outcomes(suite, defense).values())
    ]
    return failed + [
        f"Nearly all answers under {defense} to {', '.join(suites)} are degenerate (broken text), "
        "so that its rates there say nothing about safety."
        for defense, suites in cells.items()
    ]
