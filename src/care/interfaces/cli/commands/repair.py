"""The main job and its parts: `care repair`, `care diagnose`, `care fit`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from pathlib import Path

from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import FailAbove, hide_loading_bars, hold_to
from care.interfaces.cli.tables import interval, print_table
from care.pipeline.config import QUICKLY, RepairJob
from care.typed import from_tree


@command("repair", "Work")
@takes(RepairJob)
def repair(job: RepairJob, *, fail_above: FailAbove = None) -> None:
    """Attack, diagnose, repair and prove, with a report: the main job."""
    hide_loading_bars()
    from care.pipeline import workflow
    from care.runs.progress import Progress
    from care.statistics.intervals import Interval

    tree = workflow.repair(job, progress=Progress)
    sides = ("before", "after")
    cells = (
        [s["name"], s["metric"], *(interval(from_tree(Interval, s[side])) for side in sides)]
        for s in tree["suites"]
    )
    print_table(["suite", "metric", *sides], cells)
    if job.quick:
        print(f"Quick: fitted, chosen and tested on {QUICKLY}.")
    print(tree["summary"]["verdict"])
    print(job.run.out / "report.html")
    hold_to(fail_above, tree["summary"]["mean_asr_after"])


@command("diagnose", "Work")
@takes(RepairJob, without=("tune",), out=Path("runs/diagnose"))
def diagnose(job: RepairJob) -> None:
    """Find the layers, components and neurons that carry the attacks, and say how sure that is."""
    hide_loading_bars()
    from care.pipeline import workflow
    from care.runs.progress import Progress

    found = workflow.diagnose(job, progress=Progress)
    for item in found["recommended"]:
        print(f"{item['site']}  {item['modality']}  {item['reason']}")
    if not found["recommended"]:
        print("No site carries the attacks by itself.")
    for heading, key in (("Supported", "supported"), ("Not supported", "unsupported")):
        print(f"{heading}:", *(f"  - {sentence}" for sentence in found[key]), sep="\n")
    print(job.run.out / "diagnosis.html")


@command("fit", "Work")
@takes(RepairJob, out=Path("runs/fit"))
def fit(job: RepairJob) -> None:
    """Fit a repair and save it as a folder, without the proof."""
    hide_loading_bars()
    from care.pipeline import workflow
    from care.runs.progress import Progress

    print(workflow.fit(job, progress=Progress))
