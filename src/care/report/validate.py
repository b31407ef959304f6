"""Check a report tree against `care.report.schema`, naming the offending key in one sentence.

`plain` turns numpy scalars, arrays and tuples into JSON values; `validate` walks the type hints,
then `_cross_checks` compares the parts with each other (outcome counts add up to `n`, rates equal
the counts they come from, every control covers the same suites). Nothing is repaired silently.
"""

import difflib
import math
import re
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

import numpy as np

from care.errors import DataError
from care.report.schema import OUTCOMES, SCHEMA, DataImage, Length, Range, Report

_TOLERANCE = 1e-6
_IMAGE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")
_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


def plain(value: Any, path: str = "") -> Any:
    """Copy `value` with numpy scalars and arrays, tuples and mappings as plain JSON values.

    Raises `DataError` for anything that JSON can't hold, NaN and infinity included.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _error(path, f"is {value}, which JSON can't hold; leave it out or use null")
        return value
    if isinstance(value, Mapping):
        if bad := next((key for key in value if not isinstance(key, str)), None):
            raise _error(path, f"has the key {bad!r} of type {type(bad).__name__}; use strings")
        return {key: plain(item, _join(path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise _error(path, f"has the type {type(value).__name__}; use plain JSON values")


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
        raise _error(
            "schema", f"is {_show(found)}, but this version of care reads and writes {SCHEMA!r}"
        )
    _check(tree, Report, "", strict)
    _cross_checks(tree)


def validate_parts(tree: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Check only some top-level keys (all of them must be there), and how they fit together."""
    hints = get_type_hints(Report, include_extras=True)
    for key in keys:
        if key not in tree:
            raise _error(key, "is missing")
        hint = hints[key]
        _check(tree[key], hint, key, True)
    _check_suites(tree)


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
            raise _error(path, f"is {_show(value)}; use one of {choices}")
    elif origin is list:
        _check_type(value, list, path, "a list")
        for i, item in enumerate(value):
            _check(item, get_args(hint)[0], f"{path}[{i}]", strict)
    elif origin is dict:
        _check_type(value, dict, path, "an object")
        for key, item in value.items():
            _check(item, get_args(hint)[1], _join(path, key), strict)
    elif get_origin(hint) is not None and len(get_args(hint)) == 1:  # NotRequired[...]
        _check(value, get_args(hint)[0], path, strict)
    else:
        _check_scalar(value, hint, path)


def _check_object(value: Any, hint: Any, path: str, strict: bool) -> None:
    _check_type(value, dict, path, "an object")
    hints = get_type_hints(hint, include_extras=True)
    for key in sorted(hint.__required_keys__):
        if key not in value:
            raise _error(_join(path, key), "is missing")
    for key, item in value.items():
        if key in hints:
            _check(item, hints[key], _join(path, key), strict)
        elif strict:
            close = difflib.get_close_matches(key, hints, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(hints)}"
            raise _error(_join(path, key), f"isn't a key of the schema{guess}")


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
        raise _error(path, f"is {_show(value)}; it must be {_NAMES[hint]}")


def _check_type(value: Any, kind: type, path: str, name: str) -> None:
    if not isinstance(value, kind):
        raise _error(path, f"is {_show(value)}; it must be {name}")


def _check_constraint(value: Any, constraint: Any, path: str) -> None:
    if isinstance(constraint, Range):
        if not constraint.low - _TOLERANCE <= value <= constraint.high + _TOLERANCE:
            bounds = f"between {constraint.low:g} and {constraint.high:g}"
            raise _error(path, f"is {_show(value)}; it must lie {bounds}")
    elif isinstance(constraint, Length):
        if len(value) != constraint.n:
            raise _error(path, f"has {len(value)} items; it must have {constraint.n}")
    elif isinstance(constraint, DataImage) and not _IMAGE.fullmatch(value):
        raise _error(
            path, f"is {_show(value)}; it must be a base64 data URI of a PNG, JPEG, WebP or GIF"
        )


# --- how the parts fit together -----------------------------------------------------------------


def _cross_checks(tree: Mapping[str, Any]) -> None:
    _check_suites(tree)
    for i, example in enumerate((tree.get("attribution") or {"examples": []})["examples"]):
        path = f"attribution.examples[{i}]"
        rows, cols = example["grid"] or (0, 0)
        _check_equal(len(example["visual_scores"]), rows * cols, f"{path}.visual_scores", "grid")
        _check_equal(
            len(example["text_scores"]), len(example["tokens"]), f"{path}.text_scores", "tokens"
        )
    known = {suite["name"] for suite in tree["suites"]}
    for i, pair in enumerate(tree.get("examples") or ()):
        if pair["suite"] not in known:
            raise _error(f"examples[{i}].suite", f"is {pair['suite']!r}, which isn't in suites")
    if repair := tree.get("repair"):
        chosen = sum(candidate["chosen"] for candidate in repair["selection"]["candidates"])
        if chosen > 1:
            raise _error(
                "repair.selection.candidates", f"marks {chosen} candidates as chosen; mark one"
            )


def _check_suites(tree: Mapping[str, Any]) -> None:
    if not tree["suites"]:
        raise _error("suites", "is empty; a report needs at least one measured suite")
    seen: set[str] = set()
    for i, suite in enumerate(tree["suites"]):
        path = f"suites[{i}]"
        if suite["name"] in seen:
            raise _error(f"{path}.name", f"repeats {suite['name']!r}; names must be unique")
        seen.add(suite["name"])
        if suite["name"] not in tree["outcomes"]:
            raise _error(_join("outcomes", suite["name"]), "is missing, but suites lists it")
        for when in ("before", "after"):
            _check_interval(suite[when], f"{path}.{when}")
            _check_counts(suite, when, tree["outcomes"][suite["name"]][when], path)
    if extra := sorted(set(tree["outcomes"]) - seen):
        raise _error(_join("outcomes", extra[0]), "isn't the name of a suite in suites")
    _check_controls(tree, seen)


def _check_interval(interval: Mapping[str, float], path: str) -> None:
    low, rate, high = interval["low"], interval["rate"], interval["high"]
    if not low - _TOLERANCE <= rate <= high + _TOLERANCE:
        raise _error(path, f"has rate {rate:g} outside its interval [{low:g}, {high:g}]")


def _check_counts(
    suite: Mapping[str, Any], when: str, counts: Mapping[str, int], path: str
) -> None:
    """Counts add up to n, and an ASR or an answered share is the share of its outcome."""
    where = f"{_join('outcomes', suite['name'])}.{when}"
    total = sum(counts[name] for name in OUTCOMES)
    _check_equal(total, suite["n"], where, f"{path}.n")
    outcome = {"ASR": "harmful", "answered": "safe"}.get(suite["metric"])
    if outcome is None:
        return
    share, rate = counts[outcome] / suite["n"], suite[when]["rate"]
    if abs(share - rate) > _TOLERANCE:
        raise _error(
            f"{path}.{when}.rate", f"is {rate:g}, but {where}.{outcome} gives a share of {share:g}"
        )


def _check_controls(tree: Mapping[str, Any], known: set[str]) -> None:
    targets = [s["name"] for s in tree["suites"] if s["role"] == "attack" and s["target"]]
    for name, control in (tree.get("controls") or {}).items():
        path = _join("controls", name)
        if unknown := sorted(set(control["suites"]) - known):
            raise _error(f"{_join(path, 'suites')}", f"names {unknown[0]!r}, not in suites")
        if missing := [suite for suite in targets if suite not in control["suites"]]:
            raise _error(
                f"{path}.suites", f"lacks {missing[0]!r}; a control needs every target attack suite"
            )
        if not targets:
            continue
        mean = sum(control["suites"][suite] for suite in targets) / len(targets)
        if abs(mean - control["mean_asr"]) > _TOLERANCE:
            raise _error(
                f"{path}.mean_asr", f"is {control['mean_asr']:g}, but its suites average {mean:g}"
            )


def _check_equal(found: int, expected: int, path: str, source: str) -> None:
    if found != expected:
        raise _error(path, f"counts {found}, but {source} says {expected}")


def _join(path: str, key: str) -> str:
    key = key if re.fullmatch(r"\w+", key) else f"[{key!r}]"
    return key if not path else path + key if key.startswith("[") else f"{path}.{key}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _error(path: str, what: str) -> DataError:
    return DataError(f"The report can't be used: `{path or 'the tree'}` {what}.")
