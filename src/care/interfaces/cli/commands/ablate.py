"""What each part of a repair is worth: `care ablate`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import JUDGING, hide_loading_bars
from care.interfaces.cli.tables import interval, print_table
from care.pipeline.config import RepairJob


@command("ablate", "Work")
@takes(
    RepairJob,
    without=("preset", "tune", "shard", *JUDGING),
    recipes=True,
    out=Path("runs/ablate"),
    test_length=24,
)
def ablate(job: RepairJob) -> None:
    """Fit the presets and each with one thing changed, and set them against each other."""
    hide_loading_bars()
    from care.pipeline.ablation import ablate as run_ablation
    from care.report.ablation import write_ablation
    from care.runs.progress import Progress

    table = run_ablation(job, progress=Progress)
    page = write_ablation(table, job.run.out)
    cells = [
        [
            row.name,
            *("" if part is None else interval(part) for part in (row.asr, row.answered)),
            row.failed or ("" if row.against is None else f"{row.against.p_holm:.2g}"),
        ]
        for row in table.rows
    ]
    print_table(["row", "ASR", "answered", "p (Holm)"], cells)
    for claim in table.claims:
        print(claim)
    print(page)
