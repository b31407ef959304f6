"""The commands that measure: `care evaluate`, `care rejudge`, `care judges`.

Options to a job, its scorecard to tables on standard output. Nothing is computed here.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from care.errors import UsageError
from care.interfaces.cli.options import (
    Command,
    DeviceMap,
    Dtype,
    FailAbove,
    ModelName,
    Precision,
    Revision,
    Seed,
    Thoughts,
    TrustRemoteCode,
    hide_loading_bars,
    hold_to,
    print_table,
)
from care.interfaces.cli.tables import show, show_reports

judges_app = typer.Typer(help="The judges, and how far they agree with labels by hand.")
judges_command = partial(judges_app.command, cls=Command)

_JUDGE = "NAME[,option=value]…, may be given repeatedly; see `care judges`."
Judges = Annotated[list[str] | None, typer.Option("--judge", help=_JUDGE)]
Labels = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Answers labelled by hand (.jsonl), to correct rates."
    ),
]
Margin = Annotated[float, typer.Option(help="Loss of utility that is accepted.")]


def evaluate(
    model: ModelName = None,
    *,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack and over-refusal suites, names or .jsonl files, by commas; repeatable."
        ),
    ] = None,
    utility: Annotated[
        list[str] | None,
        typer.Option(help="Utility suites; repeatable; with neither: all of the small world."),
    ] = None,
    repair: Annotated[
        list[Path] | None, typer.Option("--repair", help="Folder of a repair; repeatable.")
    ] = None,
    adaptive: Annotated[
        list[str] | None,
        typer.Option(
            help="Image attack to make through every repair, PRESET[,option=value]…; repeatable."
        ),
    ] = None,
    judge: Judges = None,
    labels: Labels = None,
    fitted_on: Annotated[
        list[str] | None,
        typer.Option(help="Suites fitted on, by commas, to look for near leaks too; repeatable."),
    ] = None,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Go on though goals fitted on are tested.")
    ] = False,
    margin: Margin = 0.02,
    fail_above: FailAbove = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/evaluate"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or start.")
    ] = False,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples of a suite.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples at once.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer; none: by the model.")
    ] = None,
    thoughts: Thoughts = None,
    dtype: Dtype = Precision["auto"],
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer suites bare and under repairs, judge the answers, and say what the figures show."""
    from care.evaluation import job as evaluation_job
    from care.runs.progress import Progress

    hide_loading_bars()
    job = evaluation_job.EvaluationJob(
        model=model,
        suites=_names(suite, "--suite"),
        utility=_names(utility, "--utility"),
        repairs=tuple(repair or ()),
        adaptive=tuple(adaptive or ()),
        judges=tuple(judge or ("rules",)),
        labels=labels,
        fitted_on=_names(fitted_on, "--fitted-on"),
        allow_leaks=allow_leaks,
        margin=margin,
        out=out,
        resume=resume,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        thoughts=tuple(thoughts or ()),
        dtype=str(dtype),
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    tree = evaluation_job.evaluate(job, progress=Progress)
    show(tree)
    print(out / evaluation_job.TABLE)
    hold_to(fail_above, worst_asr(tree["suites"]))


def rejudge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished evaluation.")],
    *,
    judge: Judges = None,
    labels: Labels = None,
    margin: Margin = 0.02,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again where a judge's call had failed.")
    ] = False,
    thoughts: Thoughts = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a copy that is judged; none: RUN itself.")
    ] = None,
) -> None:
    """Judge the stored answers of a run with other judges, without answering anew."""
    from care.evaluation import job as evaluation_job
    from care.runs.progress import Progress

    if not judge:
        raise UsageError("care rejudge needs --judge NAME; `care judges` lists them.")
    hide_loading_bars()
    tree = evaluation_job.rejudge_run(
        run,
        judge,
        labels=labels,
        margin=margin,
        retry=retry,
        thoughts=tuple(thoughts or ()),
        out=out,
        progress=Progress,
    )
    show(tree)
    print((out or run) / evaluation_job.TABLE)


# -- judges --------------------------------------------------------------------------------------


@judges_app.callback(invoke_without_command=True)
def judges(ctx: typer.Context) -> None:
    """The judges, and how far they agree with labels by hand."""
    if ctx.invoked_subcommand is None:
        list_judges()


@judges_command("list")
def list_judges() -> None:
    """Every judge, what it decides and needs, and its options."""
    from care.judges.registry import JUDGES

    cells = ([name, entry.about, ", ".join(entry.options)] for name, entry in JUDGES.items())
    print_table(["judge", "what it decides", "options"], cells)


@judges_command("check")
def check_judges(
    labels: Annotated[
        Path,
        typer.Argument(help="Answers labelled by hand (.jsonl).", exists=True, dir_okay=False),
    ],
    judge: Judges = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, wrong answers too.")] = False,
) -> None:
    """How far judges agree with answers that were labelled by hand."""
    from care.judges.labels import read_labels, with_labels
    from care.judges.registry import check_judge, load_judge

    rows = read_labels(labels)
    for wanted in judge or ():
        check_judge(wanted)
    if judge:
        hide_loading_bars()
    reports = [with_labels(rows, load_judge(wanted)) for wanted in judge or ("rules",)]
    if as_json:
        print(json.dumps(reports, indent=1, ensure_ascii=False))
    else:
        show_reports(reports)


def worst_asr(suites: Sequence[Mapping[str, Any]]) -> float | None:
    """The greatest mean ASR of any repair; None if no attack suite has answers under one.

    As in a report, the direct request is a baseline and doesn't count beside other attacks.
    """
    from care.data.small_world.suites import BASELINE

    attacks = [s for s in suites if s["role"] == "attack"]
    attacks = [s for s in attacks if s["name"] != BASELINE] or attacks
    rates: dict[str, list[float]] = {}
    for suite in attacks:
        for name, cell in suite["defenses"].items():
            if name != "none" and cell["rate"] is not None:
                rates.setdefault(name, []).append(cell["rate"])
    return max((sum(found) / len(found) for found in rates.values()), default=None)


def _names(given: Sequence[str] | None, option: str) -> tuple[str, ...]:
    names: list[str] = []
    for one in given or ():
        found = [name.strip() for name in one.split(",") if name.strip()]
        if not found:
            raise UsageError(f"{option} {one!r} names no suite; see `care suites`.")
        names += found
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{option} names {twice} twice; name it once.")
    return tuple(names)
