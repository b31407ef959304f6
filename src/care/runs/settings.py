"""What a field of a configuration says of itself beside its type and its docstring, and whether
what a user passed keeps to it.

    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    labels: Annotated[Path | None, FILE] = None
    suites: Annotated[tuple[str, ...], Said("--suite", by_commas=True)] = ()

    check_bounds(config)                         every number lies within its bounds
    require(config, {"draws": 1, "sizes": 2})    the same for fields without bounds of their own
    named_options("api,model=m", "a judge")      ("api", {"model": "m"})
    check_file_name("pgd-32", "an attack")       "pgd-32"

The command line shows the bounds, and makes one option of each field. Not here: what a field
means, and checks of several fields together, which stand in their `__post_init__`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from care.errors import UsageError

MANY = 10**9
"""Greatest number of examples, steps or bytes of anything that a user may ask for."""

MAX_BATCH = 2**20
"""Most examples at once, and most tokens of an answer; no memory holds more."""

MAX_SEED = 2**32 - 1
"""Greatest seed that every library takes."""

MAX_NAME = 80
"""Greatest length of a name that becomes that of a file."""

_FILE_NAME = re.compile(f"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")

_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{p}{n}" for p in ("COM", "LPT") for n in range(1, 10)}
"""Names that stand for devices on Windows, with any ending."""

Mark = TypeVar("Mark")


# -- marks of fields ------------------------------------------------------------------------------


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


# -- checks --------------------------------------------------------------------------------------


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


def require(
    config: Any, least: Mapping[str, float], most: Mapping[str, float] | float = math.inf
) -> None:
    """UsageError unless every field named in `least` is None or a number within its bounds.

    `most` are greatest values by name, or one for all; no field may be infinite or NaN.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(value, bool) or not issubclass(type(value), Real) or value != value:
            raise UsageError(f"{name} must be a number, got {value!r:.40}.")
        if value < bound:
            raise UsageError(f"{name} must be at least {bound}, got {value}.")
        limit = most.get(name, math.inf) if isinstance(most, Mapping) else most
        if value > limit or value == math.inf:
            told = f"at most {limit:,}" if limit < math.inf else "finite"
            raise UsageError(f"{name} must be {told}, got {value!r:.40}.")


def check_file_name(name: str, what: str) -> str:
    """The name, if it can be that of a file on any system; UsageError names `what` it is of.

    Letters, digits, `.`, `_` and `-` of ASCII, not beginning with a dot or a sign, so that it can
    lead neither out of a folder nor into another.
    """
    reserved = name.partition(".")[0].upper() in _RESERVED or name.endswith((".", ".part"))
    if not _FILE_NAME.fullmatch(name) or reserved:
        raise UsageError(
            f"The name {name!r:.80} of {what} would be that of a file; use at most "
            f"{MAX_NAME} letters, digits, '.', '_' and '-', beginning with a letter or digit."
        )
    return name


def named_options(wanted: str, what: str) -> tuple[str, dict[str, str]]:
    """NAME[,option=value]… as a name and its options; UsageError for an option without a value or
    one that stands twice."""
    name, *parts = (part.strip() for part in wanted.split(","))
    options: dict[str, str] = {}
    for place, part in enumerate(parts, start=1):
        key, sign, value = part.partition("=")
        if not sign or not key or not value:
            # Not repeated: a key that was pasted in the wrong place must not be said.
            raise UsageError(
                f"An option of {what} is written option=value, which number {place} after "
                f"{name!r} isn't."
            )
        if key in options:
            raise UsageError(f"The option {key} of {what} is there twice in {wanted!r}; leave one.")
        options[key] = value
    return name, options
