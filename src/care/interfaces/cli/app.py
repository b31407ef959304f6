"""The command line: options to a `Job`, its result to a few lines, errors to one sentence.

Exit codes: 0; 1, a result fell short of a threshold that the user gave; 2, wrong use or an error
that `care` foresees (one sentence on standard error, no traceback); 130, interrupted; 143,
terminated. Standard output holds results, standard error progress. Nothing is computed here, and
torch is imported only by the commands that need it.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from care.interfaces.cli.attack import attack
from care.interfaces.cli.embedded import embedded_app
from care.interfaces.cli.evaluate import evaluate, judges_app, rejudge
from care.interfaces.cli.inspect import inspect_log
from care.interfaces.cli.options import (
    Command,
    FailAbove,
    Precision,
    Seed,
    Thoughts,
    ended_by_sigterm,
    hide_loading_bars,
    hold_to,
    interval,
    print_table,
)
from care.interfaces.cli.suites import suites_app

if TYPE_CHECKING:
    from care.pipeline.config import Job

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

Preset = StrEnum("Preset", ["paper", "official", "corrected"])

app = typer.Typer(
    name="care",
    help="Find where a vision-language model is unsafe, repair its activations, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(suites_app, name="suites")
app.add_typer(embedded_app, name="embedded")
app.add_typer(judges_app, name="judges")
command = partial(app.command, cls=Command)
command()(attack)


# -- the options of a job ----------------------------------------------------------------------


def _option(kind: Any, text: str, *names: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(*names, help=text, **more)]


_MODEL = Annotated[
    str | None, typer.Argument(help="Name on the Hub or a folder; none: the embedded model.")
]
_FILE: dict[str, Any] = {"exists": True, "dir_okay": False}
_JOB_OPTIONS: dict[str, tuple[Any, Any]] = {
    "model": (_MODEL, None),
    "out": (_option(Path, "Folder of the run."), None),
    "resume": (_option(bool, "Go on with the run in --out, or start.", "--resume"), False),
    "seed": (Seed, 0),
    "preset": (_option(Preset, "How the repair is fitted."), Preset["corrected"]),
    "attacks": (_option(Path | None, "Attacks of your own, JSON Lines.", **_FILE), None),
    "benign": (_option(Path | None, "Benign requests of your own.", **_FILE), None),
    "dtype": (_option(Precision, "Precision of the model."), Precision["auto"]),
    "device_map": (_option(str | None, "Where the model goes, such as auto or cuda:0."), None),
    "batch_size": (_option(int | None, "Examples at once.", min=1), None),
    "max_new_tokens": (_option(int, "Length of an answer.", min=1), 24),
    "test_length": (_option(int, "Test examples of each suite.", min=1), 60),
    "revision": (_option(str | None, "Revision of the model."), None),
    "trust_remote_code": (_option(bool, "Run the model's own code.", "--trust-remote-code"), False),
    "thoughts": (Thoughts, None),
}
"""Name of a field of `Job` -> (type and help, default); the default of `out` is the command's."""


def takes_job(out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a job before its own; it gets the `Job` first.

    `out` is the default folder.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=Path(out) if name == "out" else default,
                annotation=annotation,
            )
            for name, (annotation, default) in _JOB_OPTIONS.items()
        ]

        def run(**given: Any) -> None:
            from care.pipeline.config import Job

            hide_loading_bars()
            fields = {name: given.pop(name) for name in _JOB_OPTIONS}
            fields |= {name: str(fields[name]) for name in ("preset", "dtype")}
            fields["thoughts"] = tuple(fields["thoughts"] or ())
            function(Job(**fields), **given)

        parameters = [*shared, *own]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


# -- the main job and its parts ----------------------------------------------------------------


@command()
@takes_job("runs/repair")
def repair(job: "Job", *, fail_above: FailAbove = None) -> None:
    """Attack, diagnose, repair and prove, with a report: the main job."""
    from care.pipeline import workflow as pipeline
    from care.runs.progress import Progress

    tree = pipeline.repair(job, progress=Progress)
    _show_suites([(s, {"before": s["before"], "after": s["after"]}) for s in tree["suites"]])
    print(tree["summary"]["verdict"])
    print(job.out / "report.html")
    hold_to(fail_above, tree["summary"]["mean_asr_after"])


@command()
@takes_job("runs/diagnose")
def diagnose(job: "Job") -> None:
    """Find the layers, components and neurons that carry the attacks, and say how sure that is."""
    from care.pipeline import workflow as pipeline
    from care.runs.progress import Progress

    found = pipeline.diagnose(job, progress=Progress)
    for item in found["recommended"]:
        print(f"{item['site']}  {item['modality']}  {item['reason']}")
    if not found["recommended"]:
        print("No site carries the attacks by itself.")
    for heading, key in (("Supported", "supported"), ("Not supported", "unsupported")):
        print(f"{heading}:", *(f"  - {sentence}" for sentence in found[key]), sep="\n")
    print(job.out / "diagnosis.html")


@command()
@takes_job("runs/fit")
def fit(job: "Job") -> None:
    """Fit a repair and save it as a folder, without the proof."""
    from care.pipeline import workflow as pipeline
    from care.runs.progress import Progress

    print(pipeline.fit(job, progress=Progress))


command()(evaluate)
command()(rejudge)
command()(inspect_log)


@command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its report.json.")],
) -> None:
    """Write report.html anew from report.json."""
    from care.report.files import load_report, write_report

    page, _ = write_report(load_report(run), run if run.is_dir() else run.parent)
    print(page)


# -- what every command shares -----------------------------------------------------------------


def _show_version(wanted: bool) -> None:
    if wanted:
        from care import __version__

        print(f"care {__version__}")
        raise typer.Exit


@app.callback()
def care_command(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Find where a vision-language model is unsafe, repair its activations, and prove it."""


def _show_suites(suites: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """A row for each suite, a column for each defense of it."""
    defenses = list(dict.fromkeys(name for _, cells in suites for name in cells))
    rows = (
        [s["name"], s["metric"], *(interval(cells[d]) if d in cells else "" for d in defenses)]
        for s, cells in suites
    )
    print_table(["suite", "metric", *defenses], rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries keep their advice to themselves; warnings of `care` are one line."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"Warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"care(\.|$)")
        warnings.showwarning = show
        yield


@contextmanager
def _any_text() -> Iterator[None]:
    """What a terminal's encoding lacks is shown as an escape, and so is what is no valid text."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    errors = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, before in zip(streams, errors, strict=True):
            stream.reconfigure(errors=before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `care` with the arguments (default: the process's) and return its exit code."""
    try:
        with _quiet(), _any_text(), ended_by_sigterm():
            app(args=None if arguments is None else list(arguments), prog_name="care")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
