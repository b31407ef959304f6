"""Every defense in one table: `care compare`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars
from care.interfaces.cli.tables import interval, print_table
from care.pipeline.config import CompareJob


@command("compare", "Work")
@takes(
    CompareJob,
    without=("preset", "tune", "shard", "labels", "margin"),
    recipes=True,
    out=Path("runs/compare"),
)
def compare(job: CompareJob) -> None:
    """Fit every defense at its best and set all of them against the repair, in one table."""
    hide_loading_bars()
    from care.pipeline.compare import compare as run_comparison
    from care.report.comparison import write_comparison
    from care.report.studies import load_studies
    from care.runs.progress import Progress

    table = run_comparison(job, progress=Progress)
    page = write_comparison(table, job.run.out)
    cells = [
        [
            row.name,
            *("" if one is None else interval(one) for one in (row.asr, row.utility, row.answered)),
            row.failed or ("" if row.against is None else f"{row.against.p_holm:.2g}"),
        ]
        for row in table.rows
    ]
    print_table(["defense", "ASR", "utility", "answered", "p (Holm)"], cells)
    for each in table.agreement:
        print(f"{' and '.join(each.judges)} agree on {each.agreement:.0%} of {each.n} attacks.")
    studied = load_studies(job.run.out)
    for sentence in (*table.notes, *table.claims, *(studied.claims if studied else ())):
        print(sentence)
    print(page)
