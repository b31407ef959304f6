"""The command line: options to a configuration, its result to a few lines, errors to one sentence.

Exit codes: 0; 1, a result fell short of a threshold that the user gave, or suites share goals; 2,
wrong use or an error that `care` foresees (one sentence on standard error, no traceback); 130,
interrupted; 143, terminated. Standard output holds results, standard error progress. Nothing is
computed here, and torch is imported only by the commands that need it. The commands are in
`commands`, each in a file.
"""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

import typer
from typer.main import get_command

from care.interfaces.cli.registry import Group, add_commands, ended_by_sigterm, fail, renamed

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

app = typer.Typer(
    name="care",
    help="Find where a vision-language model is unsafe, repair its activations, and prove it.",
    no_args_is_help=True,
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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


add_commands(app)


@cache
def whole_command() -> Any:
    """`care` with all below it. Calling the app would build it anew each time."""
    return get_command(app)


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
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _quiet(), _any_text(), ended_by_sigterm():
            if told := renamed(given):
                fail(told)
            whole_command()(args=given, prog_name="care")
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
