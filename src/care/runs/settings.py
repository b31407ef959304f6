"""What a field of a configuration says of itself beside its type and its docstring.

    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    labels: Annotated[Path | None, FILE] = None
    suites: Annotated[tuple[str, ...], Said("--suite", by_commas=True)] = ()

`check_bounds` holds a configuration to its bounds; the command line shows them, and makes one
option of each field. Not here: checks of several fields together, which stand in their
`__post_init__`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from care.runs.options import require

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Between:
    """The bounds of a number, both included; None beside it is always allowed."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""


@dataclass(frozen=True)
class Said:
    """How a field is said on the command line, where not as --name-of-the-field."""

    name: str
    """An option, or the name of an argument without dashes."""
    by_commas: bool = False
    """Whether one value names several, separated by commas."""


@dataclass(frozen=True)
class ExistingFile:
    """A path at which a file must be."""


FILE = ExistingFile()


@dataclass(frozen=True)
class Unsaid:
    """A field that the command line doesn't have."""


UNSAID = Unsaid()


def marks(config: type) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Name, type and marks of each field of a configuration, in their order."""
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        hint = hints[field.name]
        if get_origin(hint) is Annotated:
            kind, *found = get_args(hint)
            yield field.name, kind, (*found,)
        else:
            yield field.name, hint, ()


def mark_of(kind: type[Mark], found: tuple[Any, ...]) -> Mark | None:
    """The first mark of a kind; None where there is none."""
    return next((mark for mark in found if isinstance(mark, kind)), None)


def check_bounds(config: object) -> None:
    """UsageError unless every field with bounds is None or a number within them."""
    kind: type = type(config)
    bounds = {name: mark_of(Between, found) for name, _, found in marks(kind)}
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    require(
        config,
        {name: bound.low for name, bound in known.items()},
        {name: bound.high for name, bound in known.items()},
    )
