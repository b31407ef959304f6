"""Plain JSON values of a report tree, paths of its keys, and the sentence about a bad one.

`plain` turns numpy scalars, arrays and tuples into JSON values. Nothing is repaired silently: what
JSON can't hold is refused.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from care.errors import DataError

TOLERANCE = 1e-6
"""Largest difference of two figures that count as equal."""


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
            raise problem(path, f"is {value}, which JSON can't hold; leave it out or use null")
        return value
    if isinstance(value, Mapping):
        if bad := next((key for key in value if not isinstance(key, str)), None):
            raise problem(path, f"has the key {bad!r} of type {type(bad).__name__}; use strings")
        return {key: plain(item, join(path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise problem(path, f"has the type {type(value).__name__}; use plain JSON values")


def join(path: str, key: str) -> str:
    """Path of `key` inside `path`, as Python would index it."""
    key = key if re.fullmatch(r"\w+", key) else f"[{key!r}]"
    return key if not path else path + key if key.startswith("[") else f"{path}.{key}"


def show(value: Any) -> str:
    """The value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def problem(path: str, what: str) -> DataError:
    """The error to raise about the key at `path`."""
    return DataError(f"The report can't be used: `{path or 'the tree'}` {what}.")


def check_interval(interval: Mapping[str, Any], path: str, key: str = "rate") -> None:
    """Raise unless the figure lies between `low` and `high`."""
    low, middle, high = interval["low"], interval[key], interval["high"]
    if not low - TOLERANCE <= middle <= high + TOLERANCE:
        raise problem(path, f"has {key} {middle:g} outside its interval [{low:g}, {high:g}]")


def check_equal(found: int, expected: int, path: str, source: str) -> None:
    """Raise unless two counts agree."""
    if found != expected:
        raise problem(path, f"counts {found}, but {source} says {expected}")
