"""Paths of the keys of a report tree, and the sentence about a bad one."""

import re
from collections.abc import Mapping
from typing import Any

from care.errors import DataError

TOLERANCE = 1e-6
"""Largest difference of two figures that count as equal."""


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
