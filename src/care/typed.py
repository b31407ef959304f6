"""Types of results, declared once: from a value its plain JSON, and back again, checked.

A result is a frozen dataclass, declared where its figures are made, with a docstring under each
field. Its bounds are metadata of its hints, and what its fields owe each other is its `check`:

    @dataclass(frozen=True)
    class Proportion:
        \"\"\"A share with its interval.\"\"\"

        rate: Share
        \"\"\"The share.\"\"\"
        low: Share
        \"\"\"Lower limit.\"\"\"
        high: Share
        \"\"\"Upper limit.\"\"\"
        p: Annotated[Share | None, WHEN_SET] = None
        \"\"\"p of a test against one half.\"\"\"

        def check(self) -> None:
            inside(self, "rate")

    to_tree(Proportion(0.5, 0.4, 0.6))         {"rate": 0.5, "low": 0.4, "high": 0.6}
    from_tree(Proportion, tree, "suites[2]")   the value, or one sentence:
        The data can't be used: `suites[2].rate` is 1.5; it must lie between 0 and 1.

A hint is one of: str, bool, int, float, a `Literal`, `Any`, `list[T]`, `tuple[T, ...]`, a tuple of
fixed length, `dict[str, T]` or `Mapping[str, T]`, the same with a `Literal` for str, whose names
must then all be there, another such dataclass, a class that is written as text (its `str`, read by
its `parse`), each alone, with bounds by `Annotated`, or with `| None`.
A field with a default may be missing in what is read. Nothing is converted or guessed: "3" is no
number, True no integer, 1 may stand for 1.0 and stays 1, NaN and infinity are refused.

Hints are looked up when a value is read, so what they name must be imported at run time; a module
of results that the report shows imports no torch. Not here: JSON text and files (`care.runs`), a
schema for other programs and the tables of docs/report.md (`care.report.described`).
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from care.errors import CareError, DataError

TOLERANCE = 1e-6
"""Largest difference of two figures that count as equal, and by which one may pass a bound."""

T = TypeVar("T")

_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


# -- bounds and marks, as metadata of `Annotated` -----------------------------------------------


@dataclass(frozen=True)
class Range:
    """Closed bounds of a number, or of each field of an object that is a plain `float`."""

    low: float = -math.inf
    """Smallest allowed value."""
    high: float = math.inf
    """Largest allowed value."""


@dataclass(frozen=True)
class Length:
    """Exact number of items of a list."""

    n: int
    """Number of items."""


@dataclass(frozen=True)
class Pattern:
    """Form of a string."""

    regex: str
    """What the whole string must match."""
    words: str
    """The same in words, after "it must be"."""


class Mark(Enum):
    """How a field is written."""

    HIDDEN = "never in the JSON; such a field has a default"
    WHEN_SET = "left out of the JSON while it has its default"


HIDDEN, WHEN_SET = Mark.HIDDEN, Mark.WHEN_SET

Share = Annotated[float, Range(0.0, 1.0)]
"""A fraction of something."""
Change = Annotated[float, Range(-1.0, 1.0)]
"""A difference of two shares, or a correlation."""
Count = Annotated[int, Range(0)]
"""How many; an index."""
Positive = Annotated[int, Range(1)]
"""How many, at least one."""
NonNegative = Annotated[float, Range(0.0)]
"""A size."""


# -- sentences ----------------------------------------------------------------------------------


class Misfit(CareError, ValueError):
    """A value doesn't fit its type: the path of its key, and what is wrong with it.

    A `check` raises it with a path inside its own object, such as `low[1]`; "" is the object.
    """

    def __init__(self, path: str, words: str) -> None:
        super().__init__(f"`{path or 'the tree'}` {words}.")
        self.path, self.words = path, words


@contextmanager
def told(what: str, error: type[CareError] = DataError, todo: str = "") -> Iterator[None]:
    """Turn a `Misfit` into the one sentence of an `error`; `what` is the data, as "The report", and
    `todo` what to do about it."""
    try:
        yield
    except Misfit as misfit:
        ending = f"; {todo}." if todo else "."
        raise error(f"{what} can't be used: {str(misfit).removesuffix('.')}{ending}") from None


def join(path: str, key: str) -> str:
    """Path of `key`, a name or itself a path, inside `path`, as Python would index it."""
    return path + key if not path or key.startswith("[") or not key else f"{path}.{key}"


def at(path: str, name: str) -> str:
    """Path of the entry `name` of an object at `path`: `outcomes['text jailbreak']`."""
    return join(path, name if re.fullmatch(r"\w+", name) else f"[{name!r}]")


def show(value: Any) -> str:
    """The value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- what fields owe each other ------------------------------------------------------------------


def inside(interval: Any, key: str = "rate", path: str = "") -> None:
    """Misfit unless the field `key` of an object lies between its `low` and `high`."""
    low, middle, high = interval.low, getattr(interval, key), interval.high
    if not low - TOLERANCE <= middle <= high + TOLERANCE:
        raise Misfit(path, f"has {key} {middle:g} outside its interval [{low:g}, {high:g}]")


def in_order(band: Any, path: str = "") -> None:
    """Misfit if `low` lies above `high`; a mean of few skewed draws may lie outside both."""
    if band.low > band.high + TOLERANCE:
        raise Misfit(path, f"has low {band.low:g} above high {band.high:g}")


def same_count(found: int, expected: int, path: str, source: str) -> None:
    """Misfit unless two counts agree; `source` says where the expected one stands."""
    if found != expected:
        raise Misfit(path, f"counts {found}, but {source} says {expected}")


# -- from a value to plain JSON ------------------------------------------------------------------


def to_tree(value: Any, what: str = "The data", error: type[CareError] = DataError) -> Any:
    """The value as dicts, lists and scalars: keys are fields, in their order.

    Arrays and scalars of numpy become lists and numbers. What JSON can't hold, NaN and infinity
    included, raises `error`, whose sentence names its path.
    """
    with told(what, error):
        return _plain(value, "")


def _plain(value: Any, path: str) -> Any:
    if hasattr(value, "tolist"):  # of numpy, which isn't imported for this
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Misfit(path, f"is {value}, which JSON can't hold; leave it out or use null")
        return value
    if isinstance(value, Mapping):
        tree = cast("Mapping[Any, Any]", value)
        if any(not isinstance(bad := key, str) for key in tree):
            raise Misfit(path, f"has the key {bad!r} of type {type(bad).__name__}; use strings")
        return {key: _plain(item, at(path, key)) for key, item in tree.items()}
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(items)]
    if hasattr(type(value), "parse"):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        shown = [name for name, hint in hints(type(value)).items() if _is_shown(value, name, hint)]
        return {name: _plain(getattr(value, name), join(path, name)) for name in shown}
    raise Misfit(path, f"has the type {type(value).__name__}; use plain JSON values")


def _is_shown(value: Any, name: str, hint: Any) -> bool:
    marks = metadata(hint)
    if HIDDEN in marks:
        return False
    return WHEN_SET not in marks or getattr(value, name) != defaults(type(value))[name]


# -- from plain JSON to a value ------------------------------------------------------------------


def from_tree(
    kind: type[T],
    tree: Any,
    path: str = "",
    *,
    strict: bool = True,
    what: str = "The data",
    error: type[CareError] = DataError,
    todo: str = "",
) -> T:
    """The value of type `kind`, a dataclass, that a tree of plain JSON values describes.

    Raises `error` with the path of the first key that breaks the type; paths begin with `path`, and
    the sentence ends with what is `todo` about it, if anything is given.
    Keys that the type doesn't know are an error too, or if not `strict` passed over, so that what a
    later version adds stays readable.
    """
    with told(what, error, todo):
        try:
            return _fit(tree, kind, strict)
        except Misfit as misfit:
            raise Misfit(join(path, misfit.path), misfit.words) from None


def _fit(value: Any, hint: Any, strict: bool) -> Any:
    """The value that the hint describes; Misfit, with a path inside the value, if it's another."""
    if hint is Any:
        return value
    if isinstance(hint, type):
        if hint in _NAMES:
            return _scalar(value, hint)
        return (_text if hasattr(hint, "parse") else _fit_fields)(value, hint, strict)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if is_dataclass(parts[0]) and not hasattr(parts[0], "parse"):
            return _fit_fields(value, parts[0], strict, parts[1:])
        return _bounded(_fit(value, parts[0], strict), parts[1:])
    if origin in (Union, types.UnionType):
        (inner,) = (part for part in parts if part is not type(None))
        return None if value is None else _fit(value, inner, strict)
    if origin is Literal and value not in parts:
        raise Misfit("", f"is {show(value)}; use one of {', '.join(map(repr, parts))}")
    if origin is Literal:
        return value
    if origin in (list, tuple):
        return _fit_items(value, origin, parts, strict)
    return _fit_names(value, parts, strict)


def _fit_items(value: Any, kind: type, parts: tuple[Any, ...], strict: bool) -> Any:
    """The items of a list; a tuple without `...` has as many as it has types."""
    if not isinstance(value, list | tuple):
        raise Misfit("", f"is {show(value)}; it must be a list")
    items = cast("list[Any]", value)
    if kind is tuple and parts[-1] is not Ellipsis:
        _bounded(items, (Length(len(parts)),))
    else:
        parts = (parts[0],) * len(items)
    fitted = zip(items, parts, strict=True)
    return kind(_fit_at(i, item, part, strict) for i, (item, part) in enumerate(fitted))


def _fit_names(value: Any, parts: tuple[Any, ...], strict: bool) -> dict[str, Any]:
    """The entries of an object by their names: any, or exactly those of a `Literal`."""
    tree, names = _object(value), get_args(parts[0])
    for name in sorted(set(names) - tree.keys()):
        raise Misfit(at("", name), "is missing")
    for name in tree:
        if names and name not in names:
            raise Misfit(at("", name), f"isn't a key of the schema; known: {', '.join(names)}")
    return {name: _fit_at(name, item, parts[1], strict) for name, item in tree.items()}


def _fit_fields(value: Any, kind: Any, strict: bool, bounds: tuple[Any, ...] = ()) -> Any:
    """An object of a dataclass, checked field by field, then as a whole."""
    tree, known, optional = _object(value), _readable(kind), defaults(kind)
    for key in sorted(known.keys() - optional.keys() - tree.keys()):
        raise Misfit(at("", key), "is missing")
    found: dict[str, Any] = {}
    for key, item in tree.items():
        if key in known:
            bounded = bounds and known[key] is float
            hint = Annotated[(float, *bounds)] if bounded else known[key]
            found[key] = _fit_at(key, item, hint, strict)
        elif strict:
            close = difflib.get_close_matches(key, known, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise Misfit(at("", key), f"isn't a key of the schema{guess}")
    try:
        made = kind(**found)
        if hasattr(made, "check"):
            made.check()
    except Misfit:
        raise
    except CareError as error:  # the type refuses such a value wherever it's made
        raise Misfit("", f"doesn't fit: {str(error).removesuffix('.')}") from None
    return made


def _fit_at(place: str | int, value: Any, hint: Any, strict: bool) -> Any:
    """The value of an entry, by its name or number."""
    try:
        return _fit(value, hint, strict)
    except Misfit as misfit:  # only now, for most paths are never told
        path = f"[{place}]" if isinstance(place, int) else at("", place)
        raise Misfit(join(path, misfit.path), misfit.words) from None


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Misfit("", f"is {show(value)}; it must be an object")
    return cast("Mapping[str, Any]", value)


def _scalar(value: Any, hint: type) -> Any:
    wanted = int | float if hint is float else hint
    fits = isinstance(value, wanted) and isinstance(value, bool) == (hint is bool)
    if not fits or (hint is float and not math.isfinite(value)):
        raise Misfit("", f"is {show(value)}; it must be {_NAMES[hint]}")
    return value


def _text(value: Any, kind: Any, _: bool) -> Any:
    """A class that is written as text; its own words say what is wrong with another text."""
    if not isinstance(value, str):
        raise Misfit("", f"is {show(value)}; it must be a string")
    try:
        return kind.parse(value)
    except CareError as error:
        raise Misfit("", f"is {show(value)}: {str(error).removesuffix('.')}") from None


def _bounded(value: Any, bounds: tuple[Any, ...]) -> Any:
    """The value; Misfit unless it keeps all bounds."""
    for bound in bounds:
        _check_bound(value, bound)
    return value


def _check_bound(value: Any, bound: Any) -> None:
    if isinstance(bound, Range):
        if not bound.low - TOLERANCE <= value <= bound.high + TOLERANCE:
            both = f"lie between {bound.low:g} and {bound.high:g}"
            words = both if bound.high < math.inf else f"be at least {bound.low:g}"
            raise Misfit("", f"is {show(value)}; it must {words}")
    elif isinstance(bound, Length):
        if len(value) != bound.n:
            raise Misfit("", f"has {len(value)} items; it must have {bound.n}")
    elif isinstance(bound, Pattern) and not re.fullmatch(bound.regex, value):
        raise Misfit("", f"is {show(value)}; it must be {bound.words}")


# -- fields ---------------------------------------------------------------------------------------


@cache
def hints(kind: type) -> dict[str, Any]:
    """The hint of each field of a dataclass, bounds and marks included, in the order of fields."""
    found = typing.get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in fields(kind) if field.init}


@cache
def _readable(kind: type) -> dict[str, Any]:
    """The hints of the fields that stand in the JSON."""
    return {name: hint for name, hint in hints(kind).items() if HIDDEN not in metadata(hint)}


@cache
def defaults(kind: type) -> dict[str, Any]:
    """What each field has that isn't given, of those that may be left out."""
    made = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(kind)
    }
    return {name: default for name, default in made.items() if default is not MISSING}


def metadata(hint: Any) -> tuple[Any, ...]:
    """Bounds and marks of a hint; none of one without `Annotated`."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()
