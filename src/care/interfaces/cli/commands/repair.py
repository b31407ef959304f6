"""The main job and its parts: `care repair`, `care diagnose`, `care fit`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from care.errors import UsageError
from care.evaluation.config import JudgingSpec
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import (
    JUDGING,
    FailAbove,
    hide_loading_bars,
    hold_to,
    show_shard,
    show_table,
)
from care.interfaces.cli.tables import interval, print_table
from care.pipeline.config import RepairJob
from care.runs.environment import GIB
from care.runs.shards import Shard
from care.typed import from_tree

if TYPE_CHECKING:
    from care.data.at_hand import SuiteNeeds

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would be fetched and asked, and how long that takes; no more."
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(help="GPU to tell hours for: l4, rtx-4090, l40s, a100-80gb, h100 or h200."),
]


@command("repair", "Work")
@takes(RepairJob, recipes=True)
def repair(
    job: RepairJob, *, fail_above: FailAbove = None, dry_run: DryRun = False, gpu: Gpu = None
) -> None:
    """Attack, diagnose, repair and prove, with a report: the main job."""
    hide_loading_bars()
    if dry_run:
        _show_dry_run(job, gpu)
        return
    if job.part is not None:
        _answer_shard(job, job.part)
        return
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
        print(f"Quick: fitted, chosen and tested on {job.quickly}.")
    print(tree["summary"]["verdict"])
    if job.judging != JudgingSpec():
        show_table(job.run.out)
    print(job.run.out / "report.html")
    hold_to(fail_above, tree["summary"]["mean_asr_after"])


@command("diagnose", "Work")
@takes(RepairJob, without=("tune", "shard", *JUDGING), recipes=True, out=Path("runs/diagnose"))
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
@takes(RepairJob, without=JUDGING, recipes=True, out=Path("runs/fit"))
def fit(job: RepairJob) -> None:
    """Fit a repair and save it as a folder, without the proof."""
    hide_loading_bars()
    if job.part is not None:
        _answer_shard(job, job.part)
        return
    from care.pipeline import workflow
    from care.runs.progress import Progress

    print(workflow.fit(job, progress=Progress))


def _answer_shard(job: RepairJob, shard: Shard) -> None:
    from care.pipeline import workflow
    from care.runs.progress import Progress

    show_shard(*workflow.answer_shard(job, shard, progress=Progress))


def _show_fetches(job: RepairJob, needed: "Sequence[SuiteNeeds]") -> None:
    """What the named suites need, and how large everything is that would be fetched."""
    from care.pipeline.to_fetch import lack_of_space, to_fetch, total_said

    fetches = to_fetch(job, needed)
    suites = [fetch for fetch in fetches if fetch.part == "suites"]
    if needed:
        cells = (
            [need.name, "yes" if need.at_hand else "no", need.licence, fetch.said, need.to_do]
            for need, fetch in zip(needed, suites, strict=True)
        )
        print_table(["suite", "at hand", "licence", "size", "to do"], cells)
    for fetch in fetches:
        if fetch.untold and fetch.part != "suites":
            print(f"{fetch.about}: {fetch.said}.")
    print(f"To fetch: {total_said(fetches)}.")
    if lack := lack_of_space(fetches):
        print(lack)


def _show_dry_run(job: RepairJob, gpu: str | None) -> None:
    """What the job needs and asks; its pace, where the model is at hand."""
    from care.pipeline.doctor import model_finding
    from care.pipeline.dry_run import GPU_CLASSES, dry_run, probe, reached, shape_of

    if gpu is not None and gpu not in GPU_CLASSES:
        raise UsageError(f"There is no --gpu {gpu!r}; there are {', '.join(GPU_CLASSES)}.")
    model = model_finding(job.model)
    vlm = None if model.to_do else job.model.load()
    found = dry_run(job, None if vlm is None else shape_of(vlm))
    _show_fetches(job, found.needed)
    cells = ([name, *map(str, sizes.values())] for name, sizes in found.sizes.items())
    print_table(["suite", "fit", "validation", "test"], cells)
    cells = ([s.name, *map(str, (s.answers, s.tokens, s.prompts))] for s in found.stages)
    print_table(["stage, at most", "answers", "tokens", "prompts"], cells)
    if found.disk is None:
        print("Not counted before the model is at hand: the diagnosis, and what is written.")
    else:
        written = asdict(found.disk)
        parts = ", ".join(f"{name} {size / GIB:.2g}" for name, size in written.items())
        print(f"Written, at most: {sum(written.values()) / GIB:.2g} GiB ({parts}).")
    if found.steps:
        print(f"Pictures: at most {found.steps} steps of 8 requests.")
    print("Not counted: other judges, and what a search of settings asks.")
    if missing := [each.name for each in found.needed if not each.at_hand]:
        print(f"Not at hand, not counted: {', '.join(missing)}; see `care download suite`.")
    print(f"{model.about}: {model.found}{'; ' * bool(model.to_do)}{model.to_do}")
    if vlm is None or not found.examples:
        return
    pace = probe(vlm, found.examples, job.batch)
    print(
        f"Measured here: {pace.prompt:.2f} s for the prompts of a batch of {pace.batch}, "
        f"{1000 * pace.token:.1f} ms a token of it; weights {pace.weights_gib:.2f} GiB, at most "
        f"{pace.peak_gib:.1f} GiB taken."
    )
    print(f"At most {pace.hours(found.stages):.2g} hours here.")
    if gpu is not None:
        weight = next(vlm.model.parameters())
        there = pace.on(GPU_CLASSES[gpu], reached(weight.device, weight.dtype))
        fits = "fit" if pace.weights_gib < GPU_CLASSES[gpu].memory_gib else "don't fit"
        print(
            f"On {gpu}, by what its vendor states: about {there.hours(found.stages):.2g} hours; "
            f"the weights {fits} into its {GPU_CLASSES[gpu].memory_gib:g} GiB."
        )
