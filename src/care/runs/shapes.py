"""Shapes of what is read back from a run's folder: which fields, of which types.

JSON that can be read may still be another file's, an older version's, or damaged: a list where an
object belongs, a field left out. Whoever reads says here what it needs, and gets one sentence that
names the file, the place and the field. Fields that aren't named are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias, cast

from care.errors import DataError

Kind: TypeAlias = (
    "type | tuple[str | None, ...] | list[Kind] | dict[Any, Kind] | frozenset[type | None]"
)
"""A type, a tuple of allowed values, a list [kind of the entries], a dict of fields (a name that
ends in ? may be absent), {str: kind} for an object with any names, or a set of kinds."""

NUMBER: frozenset[type | None] = frozenset({int, float})
TEXT_OR_NONE: frozenset[type | None] = frozenset({str, None})
NUMBER_OR_NONE: frozenset[type | None] = frozenset({int, float, None})


def check(value: object, kind: Kind, where: str, todo: str) -> None:
    """DataError unless a value has a shape; `where` names the file, `todo` what to do about it."""
    if (wrong := _wrong(value, kind, "")) is not None:
        raise DataError(f"{where} isn't what care writes there ({wrong}); {todo}.")


def check_rows(rows: Iterable[Mapping[str, Any]], kind: Kind, where: object) -> None:
    """DataError unless all rows have a shape, and hold an answer where they hold no error."""
    todo = "restore the file, or choose another folder"
    for row in rows:
        check(row, kind, f"The row {row.get('key')!r:.80} in {where}", todo)
        told = [name for name in ("response", "outcome") if isinstance(kind, dict) and name in kind]
        if told and row["error"] is None and any(row[name] is None for name in told):
            raise DataError(
                f"The row {row['key']!r:.80} in {where} holds neither an answer with its outcome "
                f"nor an error; {todo}."
            )


def _wrong(value: object, kind: Kind, place: str) -> str | None:
    """What is wrong with a value, by its place; None if it has the shape."""
    if isinstance(kind, dict):
        return _wrong_object(value, kind, place)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return _told(value, "a list", place)
        items = enumerate(cast("list[object]", value))
        each = (_wrong(item, kind[0], f"{place}[{n}]") for n, item in items)
        return next((wrong for wrong in each if wrong is not None), None)
    if isinstance(kind, tuple):
        known = ", ".join("null" if each is None else str(each) for each in kind)
        fine = value is None or isinstance(value, str)  # what can't be hashed is none of them
        return None if fine and value in kind else _told(value, f"one of {known}", place)
    kinds = kind if isinstance(kind, frozenset) else frozenset({kind})
    if any(_is(value, each) for each in kinds):
        return None
    names = sorted("null" if each is None else _NAMES[each] for each in kinds)
    return _told(value, " or ".join(names), place)


def _wrong_object(value: object, kind: dict[Any, Kind], place: str) -> str | None:
    if not isinstance(value, Mapping):
        return _told(value, "an object", place)
    fields = cast("Mapping[str, object]", value)
    if str in kind:
        kind = dict.fromkeys(fields, kind[str])
    for name, each in kind.items():
        field = str(name).removesuffix("?")
        if field not in fields:
            if field != name:
                continue
            return f"{place + '.' if place else ''}{field} is missing"
        if wrong := _wrong(fields[field], each, f"{place + '.' if place else ''}{field}"):
            return wrong
    return None


_NAMES: dict[type, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false",
    dict: "an object", list: "a list", datetime: "a time as ISO 8601",
}  # fmt: skip


def _is(value: object, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is datetime:
        return _is_time(value)
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    return isinstance(value, kind)


def _is_time(value: object) -> bool:
    try:
        datetime.fromisoformat(cast("str", value))
    except (TypeError, ValueError):
        return False
    return True


def _told(value: object, kind: str, place: str) -> str:
    return f"{place or 'it'} must be {kind}, got {value!r:.40}"
