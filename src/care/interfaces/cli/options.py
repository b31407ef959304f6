"""What the commands share: errors to one sentence, tables, folders that aren't mixed up."""

import errno
import math
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from care.errors import CareError, UsageError
from care.runs.options import MAX_SEED

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and after SIGTERM, as shells have them."""

Precision = StrEnum("Precision", ["auto", "bfloat16", "float16", "float32"])
Split = StrEnum("Split", ["fit", "validation", "test"])


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, as batch systems send it, raises `Terminated`, unless somebody else handles it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Command(TyperCommand):
    """A command whose foreseen errors are one sentence, and whose options are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Of an option that is given twice the last value would count, in silence.
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        single = [
            option
            for option in given
            if option.param_type_name == "option"
            and not (option.multiple or getattr(option, "is_flag", False))
        ]
        for option in single:
            if single.count(option) > 1:
                fail(f"{option.opts[0]} was given {single.count(option)} times; give it once.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as end:
            resumable = any(parameter.name == "resume" for parameter in self.params)
            kept = "; what is done is kept, go on with --resume" if resumable else ""
            print(f"interrupted{kept}", file=sys.stderr)
            raise typer.Exit(TERMINATED if isinstance(end, Terminated) else INTERRUPTED) from None
        except CareError as error:
            fail(str(error))
        except OSError as error:
            # A library's own writing; every other OSError would be a mistake of ours.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            fail(f"Could not write ({error.strerror}); free some space, then go on with --resume.")


def fail(message: str) -> None:
    """One line on standard error, exit code 2."""
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(2)


def hide_loading_bars() -> None:
    """Without transformers' bar for loading weights; those of downloads from the Hub stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def check_folder(out: Path, resume: bool) -> None:
    """UsageError if `out` holds something and nobody said to go on with it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; pass a folder.")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            f"The folder {out} isn't empty; go on in it with --resume or choose another folder."
        )


ModelName = Annotated[
    str | None, typer.Argument(help="Name on the Hub or a folder; none: the embedded model.")
]
Dtype = Annotated[Precision, typer.Option(help="Precision of the model.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="Where the model goes, such as auto or cuda:0.")
]
Revision = Annotated[str | None, typer.Option(help="Revision of the model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model's own code.")
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of everything random.")]

Thoughts = Annotated[
    list[str] | None,
    typer.Option(
        "--thoughts",
        help="Further tags between which the model thinks before it answers, OPEN…CLOSE; "
        "<think>…</think> and others are known. Repeatable.",
    ),
]
FailAbove = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Exit with 1 if the mean ASR after the repair is greater."),
]


def hold_to(threshold: float | None, found: float | None) -> None:
    """Exit with 1 if the mean ASR after the repair exceeds the threshold."""
    if threshold is None:
        return
    if math.isnan(threshold):  # no rate is above it, so that everything would pass
        raise UsageError("--fail-above is not a number; pass a rate from 0 to 1.")
    if found is None:
        raise UsageError(
            "--fail-above needs at least one attack suite, but none was evaluated; add one with "
            "--suite or leave the option out."
        )
    if found > threshold:
        print(f"The mean ASR is {found:.3f}, above {threshold:g}.", file=sys.stderr)
        raise typer.Exit(1)


def interval(rate: Mapping[str, Any]) -> str:
    if rate["rate"] is None:
        return "no answers"
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # Prompts hold square brackets and colons: nothing in a cell is markup.
    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
