"""The commands of `care`: each is a function with `@command`, in a module of `commands`.

A command is added by one file, and stands in no other list: every module of that package is
imported, and its commands are found here under their words. Of two words the first is a verb
(`care list suites`), whose help names what it acts on.
"""

import errno
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from care.errors import CareError

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and after SIGTERM, as shells have them."""

Panel = Literal["Work", "Runs", "Look up"]
"""Under which heading a command stands in `care --help`."""


@dataclass(frozen=True)
class KnownCommand:
    """A command."""

    words: tuple[str, ...]
    """How it is said: one word, or a verb and what it acts on."""
    panel: Panel
    """Where it is listed."""
    function: Callable[..., None]
    """What typer calls."""


_FOUND: dict[tuple[str, ...], KnownCommand] = {}


def command(
    words: str, panel: Panel = "Look up"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        entry = KnownCommand(tuple(words.split()), panel, function)
        _FOUND[entry.words] = entry
        return function

    return decorate


def commands() -> list[KnownCommand]:
    """Every command of the modules of `commands`, by heading and name."""
    package = import_module("care.interfaces.cli.commands")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        import_module(module.name)
    order = list(Panel.__args__)
    return sorted(_FOUND.values(), key=lambda entry: (order.index(entry.panel), entry.words))


def add_commands(app: typer.Typer) -> None:
    """Put every command into an app, those of two words below their verb."""
    groups: dict[str, list[KnownCommand]] = {}
    for entry in commands():
        groups.setdefault(entry.words[0], []).append(entry)
    for verb, entries in groups.items():
        if entries[0].words == (verb,):
            app.command(verb, cls=Command, rich_help_panel=entries[0].panel)(entries[0].function)
            continue
        *others, last = (entry.words[1] for entry in entries)
        what = f"{', '.join(others)} or {last}" if others else last
        below = typer.Typer(help=f"{verb.capitalize()} {what}.", no_args_is_help=True, cls=Group)
        for entry in entries:
            below.command(entry.words[1], cls=Command)(entry.function)
        app.add_typer(below, name=verb, rich_help_panel=entries[0].panel)


# -- errors, in one sentence ---------------------------------------------------------------------


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


WrongUse: Any = typer.BadParameter.__base__
"""What typer raises for an option, argument or command that there isn't; it has no public name."""


@contextmanager
def _wrong_use_told() -> Iterator[None]:
    """Wrong use becomes one sentence that says where to read on."""
    try:
        yield
    except WrongUse as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        path = error.ctx.command_path if error.ctx else "care"
        said = error.format_message().strip().rstrip(".")
        fail(f"{said} See `{path} --help`." if said[-1] == "?" else f"{said}; see `{path} --help`.")


class Group(TyperGroup):
    """Commands, where a wrong one is told in one sentence."""

    def invoke(self, ctx: Any) -> Any:
        with _wrong_use_told():
            return super().invoke(ctx)


class Command(TyperCommand):
    """A command whose foreseen errors are one sentence, and whose options are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Of an option that is given twice the last value would count, in silence.
        with _wrong_use_told():
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


# -- names that commands had ---------------------------------------------------------------------

_RENAMED = {
    "rejudge": "care judge RUN",
    "inspect-log": "care export RUN --format inspect",
    "suites list": "care list suites",
    "suites show": "care show suite NAME",
    "suites check": "care check suites FIT TEST…",
    "suites": "care list suites",
    "judges list": "care list judges",
    "recipes list": "care list recipes",
    "judges check": "care check judge LABELS",
    "judges": "care list judges",
    "embedded assemble": "care download model embedded",
    "embedded base": "care download model embedded --where",
    "embedded train": "make embedded-model",
    "embedded attack": "make embedded-model",
    "embedded check": "make embedded-model",
    "embedded": "care download model embedded",
}


def renamed(arguments: Sequence[str]) -> str | None:
    """What to say of arguments that name a command of earlier versions; None of others."""
    for old, new in _RENAMED.items():
        if list(arguments[: old.count(" ") + 1]) == old.split():
            return f"`care {old}` is now `{new}`."
    if arguments[:1] == ["attack"] and "--compare" in arguments:
        return (
            "`care attack --compare` is now `care evaluate --repair DIR --adaptive PRESET`, which "
            "makes the images and says what they do."
        )
    return None
