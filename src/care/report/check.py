"""Check a report tree against `care.report.schema`, naming the offending key in one sentence.

`validate` walks the type hints; `care.report.consistency` then compares the parts with each other.
"""

import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from care.diagnosis.results import Diagnosis
from care.report.consistency import check_parts, check_suites
from care.report.parts import DataImage, Length, Range
from care.report.schema import SCHEMA, Report
from care.report.values import TOLERANCE, join, problem, show
from care.typed import from_tree

_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")
_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


def validate(tree: Mapping[str, Any], strict: bool = True) -> None:
    """Raise `DataError` with the path of the first key that breaks the schema.

    Parameters
    ----------
    tree
        A whole report of plain JSON values.
    strict
        Refuse keys that the schema doesn't know (a typing error would lose data without notice).
        `load_report` passes False, so that a later minor addition stays readable.
    """
    found = tree.get("schema")
    if found != SCHEMA:
        raise problem(
            "schema",
            f"is {show(found)}, but this version of care reads and writes {SCHEMA!r}; "
            "make the report again with `care repair`",
        )
    _check(tree, Report, "", strict)
    check_parts(tree)


def validate_parts(tree: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Check only some top-level keys (all of them must be there), and how they fit together."""
    hints = get_type_hints(Report, include_extras=True)
    for key in keys:
        if key not in tree:
            raise problem(key, "is missing")
        hint = hints[key]
        _check(tree[key], hint, key, True)
    check_suites(tree)


def validate_diagnosis(diagnosis: Mapping[str, Any], strict: bool = True) -> None:
    """The same for the `diagnosis` part alone."""
    _check(diagnosis, Diagnosis, "diagnosis", strict)


# --- the walk over type hints -------------------------------------------------------------------


def _check(value: Any, hint: Any, path: str, strict: bool) -> None:
    origin = get_origin(hint)
    if hint is Any:
        return
    if is_typeddict(hint):
        _check_object(value, hint, path, strict)
    elif is_dataclass(hint):
        from_tree(hint, value, path, strict=strict, what="The report")
    elif origin is Annotated:
        base, *constraints = get_args(hint)
        _check(value, base, path, strict)
        for constraint in constraints:
            _check_constraint(value, constraint, path)
    elif origin in (Union, types.UnionType):
        _check_optional(value, hint, path, strict)
    elif origin is Literal:
        if value not in get_args(hint):
            choices = ", ".join(repr(choice) for choice in get_args(hint))
            raise problem(path, f"is {show(value)}; use one of {choices}")
    elif origin is list:
        _check_type(value, list, path, "a list")
        for i, item in enumerate(value):
            _check(item, get_args(hint)[0], f"{path}[{i}]", strict)
    elif origin is dict:
        _check_type(value, dict, path, "an object")
        for key, item in value.items():
            _check(item, get_args(hint)[1], join(path, key), strict)
    elif get_origin(hint) is not None and len(get_args(hint)) == 1:  # NotRequired[...]
        _check(value, get_args(hint)[0], path, strict)
    else:
        _check_scalar(value, hint, path)


def _check_object(value: Any, hint: Any, path: str, strict: bool) -> None:
    _check_type(value, dict, path, "an object")
    hints = get_type_hints(hint, include_extras=True)
    for key in sorted(hint.__required_keys__):
        if key not in value:
            raise problem(join(path, key), "is missing")
    for key, item in value.items():
        if key in hints:
            _check(item, hints[key], join(path, key), strict)
        elif strict:
            close = difflib.get_close_matches(key, hints, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(hints)}"
            raise problem(join(path, key), f"isn't a key of the schema{guess}")


def _check_optional(value: Any, hint: Any, path: str, strict: bool) -> None:
    if value is None:
        return
    (inner,) = (part for part in get_args(hint) if part is not type(None))
    _check(value, inner, path, strict)


def _check_scalar(value: Any, hint: type, path: str) -> None:
    is_bool = isinstance(value, bool)
    good = {
        str: isinstance(value, str),
        bool: is_bool,
        int: isinstance(value, int) and not is_bool,
        float: isinstance(value, int | float) and not is_bool and math.isfinite(value),
    }[hint]
    if not good:
        raise problem(path, f"is {show(value)}; it must be {_NAMES[hint]}")


def _check_type(value: Any, kind: type, path: str, name: str) -> None:
    if not isinstance(value, kind):
        raise problem(path, f"is {show(value)}; it must be {name}")


def _check_constraint(value: Any, constraint: Any, path: str) -> None:
    if isinstance(constraint, Range):
        if not constraint.low - TOLERANCE <= value <= constraint.high + TOLERANCE:
            bounds = f"between {constraint.low:g} and {constraint.high:g}"
            raise problem(path, f"is {show(value)}; it must lie {bounds}")
    elif isinstance(constraint, Length):
        if len(value) != constraint.n:
            raise problem(path, f"has {len(value)} items; it must have {constraint.n}")
    elif isinstance(constraint, DataImage) and not _IMAGE.fullmatch(value):
        raise problem(
            path, f"is {show(value)}; it must be a base64 data URI of a PNG, JPEG, WebP or GIF"
        )
