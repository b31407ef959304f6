"""The commands that measure: `care evaluate`, and `care judge` for the answers of a run."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from care.evaluation.config import (
    CONTROLS,
    PARTS,
    UNDEFENDED,
    EvaluationConfig,
    RejudgeConfig,
)
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import (
    Explain,
    FailAbove,
    hide_loading_bars,
    hold_to,
    show_shard,
    show_table,
)
from care.interfaces.cli.tables import show

if TYPE_CHECKING:
    from care.evaluation.suite_scores import SuiteScores


@command("evaluate", "Work")
@takes(EvaluationConfig)
def evaluate(
    job: EvaluationConfig, *, explain: Explain = False, fail_above: FailAbove = None
) -> None:
    """Answer suites bare and under repairs, judge the answers, and say what the figures show."""
    hide_loading_bars()
    from care.evaluation import job as evaluation
    from care.runs.progress import Progress

    if job.part is not None:
        show_shard(*evaluation.answer_shard(job, job.part, Progress))
        return
    card = evaluation.evaluate(job, Progress, lambda line: print(line, file=sys.stderr))
    show(card)
    if explain:
        show_decided(job.run.out)
    show_table(job.run.out)
    hold_to(fail_above, worst_asr(card.suites))


@command("judge", "Runs")
@takes(RejudgeConfig)
def judge(asked: RejudgeConfig) -> None:
    """Judge the stored answers of a run with other judges, without answering anew."""
    from care.runs.manifest import check_is_run

    check_is_run(asked.path)  # before torch is imported, which takes seconds
    hide_loading_bars()
    from care.evaluation import job as evaluation
    from care.runs.progress import Progress

    show(evaluation.rejudge_run(asked, progress=Progress))
    show_table(asked.out or asked.path)


def show_decided(run: Path) -> None:
    """A line for each answer of a run that a monitor decided."""
    from care.evaluation.monitored import explained
    from care.evaluation.rejudge import read_rows
    from care.evaluation.rows import JudgedRow
    from care.runs.run import ROWS

    lines = list(explained(read_rows(run / ROWS, JudgedRow)))
    print("\nAnswers that a monitor decided:" if lines else "\nNo monitor decided an answer.")
    for line in lines:
        print(f"  {line}")


def worst_asr(suites: "Sequence[SuiteScores]") -> float | None:
    """The greatest mean ASR of any repair; None if no attack suite has answers under one.

    What a repair is compared with, its parts and controls, is none.
    As in a report, the direct request is a baseline and doesn't count beside other attacks.
    """
    from care.data.small_world.suites import BASELINE

    attacks = [s for s in suites if s.role == "attack"]
    attacks = [s for s in attacks if s.name != BASELINE] or attacks
    rates: dict[str, list[float]] = {}
    for suite in attacks:
        for name, cell in suite.defenses.items():
            if name not in (UNDEFENDED, *PARTS, *CONTROLS) and cell.rate is not None:
                rates.setdefault(name, []).append(cell.rate)
    return max((sum(found) / len(found) for found in rates.values()), default=None)
