"""What the commands share: errors to one sentence, tables, folders that aren't mixed up."""

import errno
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from care.checks import MAX_SEED
from care.errors import CareError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Precision = StrEnum("Precision", ["auto", "bfloat16", "float16", "float32"])
Split = StrEnum("Split", ["fit", "validation", "test"])


class Command(TyperCommand):
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
