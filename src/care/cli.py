"""The command line: options to a `Job`, its result to a few lines, errors to one sentence.

Exit codes: 0; 1, a result fell short of a threshold that the user gave; 2, wrong use or an error
that `care` foresees (one sentence on standard error, no traceback); 130, interrupted. Standard
output holds results, standard error progress. Nothing is computed here, and torch is imported only
by the commands that need it.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import errno
import inspect
import json
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
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from care.errors import CareError, UsageError

if TYPE_CHECKING:
    from care.jobs import Job

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


Preset = StrEnum("Preset", ["paper", "official", "corrected"])
Precision = StrEnum("Precision", ["auto", "bfloat16", "float16", "float32"])
Split = StrEnum("Split", ["fit", "validation", "test"])


class _Command(TyperCommand):
    """A command whose foreseen errors are one sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            resumable = any(parameter.name == "resume" for parameter in self.params)
            kept = "; what is done is kept, go on with --resume" if resumable else ""
            print(f"interrupted{kept}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except CareError as error:
            _fail(str(error))
        except OSError as error:
            # A library's own writing; every other OSError would be a mistake of ours.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _fail(f"Could not write ({error.strerror}); free some space, then go on with --resume.")


app = typer.Typer(
    name="care",
    help="Find where a vision-language model is unsafe, repair its activations, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
suites_app = typer.Typer(help="The suites of the embedded model's small world.")
embedded_app = typer.Typer(help="The small model that comes with care.", no_args_is_help=True)
app.add_typer(suites_app, name="suites")
app.add_typer(embedded_app, name="embedded")
command = partial(app.command, cls=_Command)
suites_command = partial(suites_app.command, cls=_Command)
embedded_command = partial(embedded_app.command, cls=_Command)


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
    "seed": (_option(int, "Seed of everything random.", min=0), 0),
    "preset": (_option(Preset, "How the repair is fitted."), Preset["corrected"]),
    "attacks": (_option(Path | None, "Attacks of your own, JSON Lines.", **_FILE), None),
    "benign": (_option(Path | None, "Benign requests of your own.", **_FILE), None),
    "dtype": (_option(Precision, "Precision of the model."), Precision["auto"]),
    "device_map": (_option(str | None, "Where the model goes, such as auto or cuda:0."), None),
    "batch_size": (_option(int, "Examples at once.", min=1), 32),
    "max_new_tokens": (_option(int, "Length of an answer.", min=1), 24),
    "test_length": (_option(int, "Test examples of each suite.", min=1), 60),
    "revision": (_option(str | None, "Revision of the model."), None),
    "trust_remote_code": (_option(bool, "Run the model's own code.", "--trust-remote-code"), False),
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
            from care.jobs import Job

            fields = {name: given.pop(name) for name in _JOB_OPTIONS}
            fields |= {name: str(fields[name]) for name in ("preset", "dtype")}
            function(Job(**fields), **given)

        parameters = [*shared, *own]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


FailAbove = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Exit with 1 if the mean ASR after the repair is greater."),
]


# -- the main job and its parts ----------------------------------------------------------------


@command()
@takes_job("runs/repair")
def repair(job: "Job", *, fail_above: FailAbove = None) -> None:
    """Attack, diagnose, repair and prove, with a report: the main job."""
    from care import pipeline
    from care.progress import Progress

    tree = pipeline.repair(job, progress=Progress)
    _show_suites([(s, {"before": s["before"], "after": s["after"]}) for s in tree["suites"]])
    print(tree["summary"]["verdict"])
    print(job.out / "report.html")
    _hold_to(fail_above, tree["summary"]["mean_asr_after"])


@command()
@takes_job("runs/diagnose")
def diagnose(job: "Job") -> None:
    """Find the layers and components that carry the attacks."""
    from care import pipeline
    from care.progress import Progress

    found = pipeline.diagnose(job, progress=Progress)["recommended"]
    for item in found:
        print(f"{item['site']}  {item['modality']}  {item['reason']}")
    if not found:
        print("No site carries the attacks by itself.")
    print(job.out / "diagnosis.json")


@command()
@takes_job("runs/fit")
def fit(job: "Job") -> None:
    """Fit a repair and save it as a folder, without the proof."""
    from care import pipeline
    from care.progress import Progress

    print(pipeline.fit(job, progress=Progress))


@command()
@takes_job("runs/evaluate")
def evaluate(
    job: "Job",
    *,
    repair: Annotated[
        list[Path], typer.Option("--repair", help="Folder of a repair; may be given repeatedly.")
    ],
    suite: Annotated[
        str | None, typer.Option(help="Names or .jsonl files, separated by commas; none: all.")
    ] = None,
    fail_above: FailAbove = None,
) -> None:
    """Compare a model with and without repairs on suites."""
    from care import pipeline
    from care.progress import Progress

    names = None
    if suite is not None:
        names = [name.strip() for name in suite.split(",") if name.strip()]
        if not names:
            raise UsageError(f"--suite {suite!r} names no suite; see `care suites`.")
    suites = pipeline.evaluate(job, repair, names, progress=Progress)["suites"]
    _show_suites([(s, s["defenses"]) for s in suites])
    print(job.out / "table.json")
    _hold_to(fail_above, _worst_asr(suites))


@command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its report.json.")],
) -> None:
    """Write report.html anew from report.json."""
    from care.report import load_report, write_report

    page, _ = write_report(load_report(run), run if run.is_dir() else run.parent)
    print(page)


# -- suites ------------------------------------------------------------------------------------


@suites_app.callback(invoke_without_command=True)
def suites(ctx: typer.Context) -> None:
    """The suites of the embedded model's small world."""
    if ctx.invoked_subcommand is None:
        list_suites()


@suites_command("list")
def list_suites(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Every suite, its role and its number of examples."""
    from care.embedded import suites as world

    roles: dict[str, str] = dict.fromkeys(world.UTILITY, "utility")
    roles |= dict.fromkeys(world.OVER_REFUSAL, "over_refusal")
    rows = [
        {"name": name, "role": roles.get(name, "attack"), "examples": dict(world.LENGTHS)}
        for name in world.NAMES
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    splits = list(world.LENGTHS)
    cells = ([row["name"], row["role"], *map(str, row["examples"].values())] for row in rows)
    _print_table(["suite", "role", *splits], cells)


@suites_command("show")
def show_suite(
    name: Annotated[str, typer.Argument(help="Name, or a .jsonl file of your own.")],
    split: Annotated[Split, typer.Option(help="Which part.")] = Split["test"],
    n: Annotated[int, typer.Option("-n", min=1, help="How many examples to print.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Write all of them, pictures too, to this .jsonl file.")
    ] = None,
) -> None:
    """The examples of one suite."""
    from care.examples_file import ENDING, load_suite, write_suite

    suite = load_suite(name, str(split))
    if out is not None:
        if out.suffix != ENDING:
            raise UsageError(f"--out is {out}; pass a file that ends in {ENDING}.")
        print(write_suite(suite, out))
        return
    cells = ([e.id, e.kind, str(len(e.images)), e.goal, e.prompt] for e in suite.head(n))
    _print_table(["id", "kind", "images", "goal", "prompt"], cells)
    if len(suite) > n:
        print(f"{n} of {len(suite)} examples; -n shows more")


# -- the embedded model ------------------------------------------------------------------------


@embedded_command()
def assemble() -> None:
    """Download the parts and assemble the model; the folder it lies in."""
    from care.embedded import ensure_base

    print(ensure_base())


@embedded_command()
def base() -> None:
    """The folder of the assembled but untrained model, there or not."""
    from care.embedded import base_folder

    folder = base_folder()
    if not folder.is_dir():
        print("Not assembled yet; run `care embedded assemble`.", file=sys.stderr)
    print(folder)


WorkFolder = Annotated[Path, typer.Option(help="Folder for the results and checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in --out, or start.")]


@embedded_command()
def train(
    out: WorkFolder = Path("runs/train"),
    resume: Resume = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the recipe.")] = 0,
) -> None:
    """Train the shipped weights anew (about two hours on two cores)."""
    _check_folder(out, resume)
    from care.embedded.cache import load
    from care.embedded.train import TrainConfig
    from care.embedded.train import train as run_recipe

    def untrained() -> tuple[Any, Any]:
        model, processor = load("bfloat16", trained=False)
        model.set_attn_implementation("eager")  # the fused kernels give no gradients here
        return model, processor

    print(run_recipe(untrained, out, TrainConfig(seed=seed), _log))


@embedded_command()
def attack(out: WorkFolder = Path("runs/attack"), resume: Resume = False) -> None:
    """Make the universal adversarial pictures anew (about two minutes each on two cores)."""
    _check_folder(out, resume)
    from care.embedded.attack import make
    from care.vlm import VLM

    for path in make(VLM.embedded(), out, _log):
        print(path)


@embedded_command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    n: Annotated[int, typer.Option("-n", min=1, help="Test examples of each suite.")] = 60,
    dtype: Annotated[Precision, typer.Option(help="Precision.")] = Precision["auto"],
) -> None:
    """How the model behaves on test goals, with intervals."""
    from care.embedded.check import THRESHOLDS, behaviours
    from care.progress import Progress
    from care.vlm import VLM

    found = behaviours(VLM.embedded(str(dtype)), n=n, progress=Progress)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    cells = (
        [name, _interval(rate), str(rate["n"]), f"{least:.2f}" if least is not None else ""]
        for name, rate in found.items()
        for least in (THRESHOLDS.get(name),)
    )
    _print_table(["behaviour", "rate", "n", "at least"], cells)


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


def _fail(message: str) -> None:
    """One line on standard error, exit code 2."""
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(2)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_folder(out: Path, resume: bool) -> None:
    """UsageError if `out` holds something and nobody said to go on with it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; pass a folder.")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            f"The folder {out} isn't empty; go on in it with --resume or choose another folder."
        )


def _hold_to(threshold: float | None, found: float | None) -> None:
    """Exit with 1 if the mean ASR after the repair exceeds the threshold."""
    if threshold is None:
        return
    if found is None:
        raise UsageError(
            "--fail-above needs at least one attack suite, but none was evaluated; add one with "
            "--suite or leave the option out."
        )
    if found > threshold:
        print(f"The mean ASR is {found:.3f}, above {threshold:g}.", file=sys.stderr)
        raise typer.Exit(1)


def _worst_asr(suites: Sequence[Mapping[str, Any]]) -> float | None:
    """The greatest mean ASR of any repair; None if no attack suite has answers under one.

    As in a report, the direct request is a baseline and doesn't count beside other attacks.
    """
    from care.jobs import BASELINE

    attacks = [s for s in suites if s["role"] == "attack"]
    attacks = [s for s in attacks if s["name"] != BASELINE] or attacks
    rates: dict[str, list[float]] = {}
    for suite in attacks:
        for name, cell in suite["defenses"].items():
            if name != "none" and cell["rate"] is not None:
                rates.setdefault(name, []).append(cell["rate"])
    return max((sum(found) / len(found) for found in rates.values()), default=None)


def _show_suites(suites: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """A row for each suite, a column for each defense of it."""
    defenses = list(dict.fromkeys(name for _, cells in suites for name in cells))
    rows = (
        [s["name"], s["metric"], *(_interval(cells[d]) if d in cells else "" for d in defenses)]
        for s, cells in suites
    )
    _print_table(["suite", "metric", *defenses], rows)


def _interval(rate: Mapping[str, Any]) -> str:
    if rate["rate"] is None:
        return "no answers"
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


def _print_table(names: Sequence[str], rows: Iterator[list[str]]) -> None:
    # Prompts hold square brackets and colons: nothing in a cell is markup.
    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `care` with the arguments (default: the process's) and return its exit code."""
    try:
        with _quiet():
            app(args=None if arguments is None else list(arguments), prog_name="care")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
