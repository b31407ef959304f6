"""Check a diagnosis against `care.report.findings`, naming the offending key in one sentence."""

import difflib
import math
import types
from collections.abc import Mapping
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

from care.report.consistency_diagnosis import check_diagnosis
from care.report.findings import Diagnosis
from care.report.parts import Length, Range
from care.report.values import TOLERANCE, join, problem, show

_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


def validate_diagnosis(diagnosis: Mapping[str, Any], strict: bool = True) -> None:
    """Raise `DataError` with the path of the first key of a diagnosis that breaks the schema."""
    _check(diagnosis, Diagnosis, "diagnosis", strict)
    check_diagnosis(diagnosis)


# --- the walk over type hints -------------------------------------------------------------------


def _check(value: Any, hint: Any, path: str, strict: bool) -> None:
    origin = get_origin(hint)
    if hint is Any:
        return
    if is_typeddict(hint):
        _check_object(value, hint, path, strict)
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
    elif isinstance(constraint, Length) and len(value) != constraint.n:
        raise problem(path, f"has {len(value)} items; it must have {constraint.n}")
