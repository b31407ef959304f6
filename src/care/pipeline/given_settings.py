"""Settings of defenses that are given, in place of those that a search would take.

    {"astra": {"depth": 0.5, "strength": 5.0}, "care, tuned": {"strength": 1.2}}

by the names of rows, or the `table.json` of a finished comparison, of which the settings that were
taken are read. So a comparison is repeated, on another machine, with more fits or with attacks
through every row, without the search. What isn't given of a row is as published, or the preset's
own; rows that aren't named are searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from care.errors import DataError, UsageError
from care.runs.reading import read_json

Options = dict[str, Any]
Given = dict[str, Options]
"""Options by name of the row."""
Open = tuple[Options, Mapping[str, Sequence[Any]]]
"""What a row leaves open: its own settings, and the values that a search would try."""


def read_settings(path: Path) -> Given:
    """The settings of a file; DataError for one of another shape."""
    tree = read_json(path, "file of settings")
    try:
        named = dict(_taken(tree["rows"])) if "rows" in tree else dict(tree)
        return {
            name: {key: _value(v) for key, v in dict(options).items()}
            for name, options in named.items()
        }
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"The settings in {path} are neither {{row: {{option: value}}}} nor the table.json of "
            "a comparison; pass one of these."
        ) from error


def check_rows(given: Given, there: Mapping[str, Open], path: Path) -> None:
    """UsageError unless some of the settings are of rows that are there, by their names, and all of
    these are such as `with_given` takes."""
    if not given.keys() & there.keys():
        raise UsageError(
            f"The settings in {path} are of {', '.join(sorted(given)) or 'no row'}, and none of "
            f"these is searched here; name some of {', '.join(there)}."
        )
    for row, (own, tried) in there.items():
        with_given(row, own, given.get(row, {}), tried)


def with_given(
    row: str, own: Options, given: Options, tried: Mapping[str, Sequence[Any]]
) -> Options:
    """A row's `own` settings with those that are given.

    `tried` are the values that a search would try. UsageError for another option, or a value that
    is of another type than these.
    """
    for name, value in given.items():
        if name not in own:
            raise UsageError(
                f"The settings give {row} the option {name!r}, which it doesn't search; it has "
                f"{', '.join(own) or 'none'}."
            )
        known = [own[name], *tried.get(name, ())]
        if not any(_alike(value, each) for each in known):
            raise UsageError(
                f"The settings give {row} {name}={value!r:.60}, which is of another type than "
                f"{own[name]!r:.60}; give one like it."
            )
    return own | given


def _alike(value: Any, known: Any) -> bool:
    if isinstance(value, tuple) and isinstance(known, tuple):
        return all(any(_alike(v, k) for k in known) for v in value)
    number = type(value) is int and type(known) is float
    return number or type(value) is type(known)


def _taken(rows: Any) -> Iterator[tuple[str, Any]]:
    """Names of rows and the settings that were taken, of those that had something to choose."""
    for row in rows:
        for each in row["tried"]:
            if each["chosen"] and each["options"]:
                yield row["name"], each["options"]


def _value(value: Any) -> Any:
    """Lists as tuples, as options are declared."""
    return tuple(map(_value, value)) if isinstance(value, list) else value
