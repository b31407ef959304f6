"""The command `care merge`: the shards of a job, put together."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path
from typing import Annotated

import typer

from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars, show_table
from care.interfaces.cli.tables import show


@command("merge", "Runs")
def merge(
    out: Annotated[Path, typer.Argument(help="Folder of a job that was asked for with --shard.")],
) -> None:
    """Put the shards of a job together, and write the table of a whole evaluation."""
    from care.runs.merging import merge as merge_shards  # its arrays need numpy, and help doesn't

    merged = merge_shards(out)
    taken = f"Taken: {merged.rows} judged answers, {merged.batches} new batches to fit on."
    if not merged.whole:
        missing = ", ".join(map(str, merged.missing))
        print(f"{taken} Not finished: shards {missing}; run them with --resume, then merge again.")
        return
    if not merged.rows:
        print(f"{taken} Go on with the job itself, with --resume and without --shard.")
        return
    print(taken)
    hide_loading_bars()
    from care.evaluation.config import RULES, JudgingSpec, RejudgeConfig
    from care.evaluation.job import rejudge_run

    show(rejudge_run(RejudgeConfig(path=out, judging=JudgingSpec((RULES,)))))
    show_table(out)
