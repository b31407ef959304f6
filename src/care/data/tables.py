"""Rows of published tables, with every cell checked when it is read.

One reader for CSV, TSV, JSON, JSON Lines and Parquet, chosen by the file's ending. A `Row` gives a
cell as the type that a loader asks for; if the column isn't there, is blank or holds another type,
a DataError names file, row and column, because a published file that has changed must not become
other examples in silence. Parquet needs the extra `parquet` and is read in batches. CSV and JSON
aren't read by the same package, since it guesses types and lets a key that is there twice through.

It doesn't know any data set, and fetches nothing.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from care.errors import DataError, MissingDependencyError
from care.runs.reading import check_regular, json_lines, parse_json, read_text, valid

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
"""Endings of files that can be read."""

_LONGEST_CELL = 1 << 28
"""Longest cell of a CSV file; the standard library's limit is below an image in base64."""

_OTHERWISE = "get the published file"

_BATCH = 64
"""Rows of a Parquet file in memory at once."""

_NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""A column without a name: as such, as pandas reads it, and as Parquet keeps it."""

_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class Row:
    """One row of a table, or one object within a row."""

    fields: Mapping[str, object]
    """The cells by column."""
    where: str
    """File and row, for errors."""
    key: str = ""
    """Its key, where a JSON file is an object of rows."""

    def wrong(self, column: str, wanted: str) -> DataError:
        """The error of a cell that isn't what it should be."""
        return DataError(
            f"{self.where}: column {column!r} must be {wanted}, got "
            f"{self.fields.get(column)!r:.60}; get the file at its published revision."
        )

    def cell(self, column: str) -> object:
        """A cell as it is; DataError if there is no such column."""
        if column not in self.fields:
            raise DataError(
                f"{self.where}: there is no column {column!r}, but "
                f"{', '.join(map(repr, self.fields)) or 'none'}; get the file at its published "
                "revision."
            )
        return self.fields[column]

    def text(self, column: str, blank: bool = False) -> str:
        """A text without blanks around it; with `blank`, one that may be empty or absent."""
        value = self.cell(column)
        if value is None and blank:
            return ""
        if not isinstance(value, str) or not (blank or value.strip()):
            raise self.wrong(column, "text" if blank else "text that isn't blank")
        return value.strip()

    def label(self, column: str) -> str:
        """A text or a whole number as text, as identifiers are."""
        value = self.cell(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(column)

    def index(self, column: str) -> str:
        """The column that names the rows: `column`, or where that isn't there the one without a
        name, since a copy that went through pandas may have lost it."""
        nameless = [name for name in self.fields if _NAMELESS.fullmatch(name)]
        return nameless[0] if column not in self.fields and len(nameless) == 1 else column

    def number(self, column: str) -> int:
        """A whole number, written as one or as its digits."""
        value = self.cell(column)
        if isinstance(value, bool) or not str(value).strip().isdecimal():
            raise self.wrong(column, "a whole number")
        return int(str(value))

    def flag(self, column: str) -> bool:
        """True or false, as such or in words."""
        value = str(self.cell(column)).strip().lower()
        if value not in _YES + _NO:
            raise self.wrong(column, "true or false")
        return value in _YES

    def one_of(self, column: str, allowed: tuple[str, ...]) -> str:
        """A text that is one of a few, in any case; returned as in `allowed`."""
        value = self.text(column)
        for name in allowed:
            if value.lower() == name.lower():
                return name
        raise self.wrong(column, f"one of {', '.join(allowed)}")

    def items(self, column: str, wanted: str) -> list[object]:
        """A list of anything; `wanted` says in errors of what."""
        value = self.cell(column)
        if not isinstance(value, list):
            raise self.wrong(column, wanted)
        return cast("list[object]", value)

    def texts(self, column: str) -> list[str]:
        """A list of texts."""
        items = self.items(column, "a list of texts")
        found = [item for item in items if isinstance(item, str)]
        if len(found) < len(items):
            raise self.wrong(column, "a list of texts")
        return found

    def inner(self, column: str) -> Row:
        """An object within the row."""
        value = self.cell(column)
        if not isinstance(value, Mapping):
            raise self.wrong(column, "an object")
        return Row(cast("Mapping[str, object]", value), f"{self.where}, {column}")

    def inners(self, column: str) -> list[Row]:
        """A list of objects within the row."""
        items = self.items(column, "a list of objects")
        if not all(isinstance(item, Mapping) for item in items):
            raise self.wrong(column, "a list of objects")
        found = cast("list[Mapping[str, object]]", items)
        return [Row(item, f"{self.where}, {column} {n}") for n, item in enumerate(found, start=1)]

    def picture(self, column: str) -> bytes:
        """The bytes of a picture: as such, in base64, or as {"bytes": …} of Parquet files."""
        value = self.cell(column)
        if isinstance(value, Mapping):
            value = cast("Mapping[str, object]", value).get("bytes")
        if isinstance(value, str):
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                value = None
        if not isinstance(value, bytes) or not value:
            raise self.wrong(column, "a picture")
        return value


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table.

    Raises:
        DataError: the file can't be read, isn't what its ending says, or has no rows.
        MissingDependencyError: a Parquet file, and pyarrow isn't installed.
    """
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_lines,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} isn't a table; pass a file that ends in {', '.join(ENDINGS)}.")
    found = mended = False
    for number, (key, fields) in enumerate(reader(path), start=1):
        found = True
        name = f"row {number}" if not key else f"row {key!r}"
        if not isinstance(fields, Mapping):
            raise DataError(f"{path}, {name} holds {fields!r:.60}, which isn't an object of cells.")
        sound = valid(fields)
        if sound != fields and not mended:
            mended = True
            warnings.warn(
                f"{path} holds text that isn't valid Unicode ({name} and maybe others), as a cut "
                "emoji is; it was replaced by U+FFFD.",
                stacklevel=2,
            )
        yield Row(sound, f"{path}, {name}", valid(key))
    if not found:
        raise DataError(f"{path} has no rows; get the file at its published revision.")


def _read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_csv_rows(path), start=1):
        if None in row:
            raise DataError(
                f"{path}, row {number} has more cells than there are columns; fetch it again."
            )
        yield "", row


def _csv_rows(path: Path) -> list[dict[Any, Any]]:
    text, delimiter = read_text(path, "table"), "\t" if path.suffix.lower() == ".tsv" else ","
    previous = csv.field_size_limit(_LONGEST_CELL)
    try:
        for strict in (True, False):
            # Not splitlines(): a cell may hold U+2028 and the like.
            lines = io.StringIO(text, newline="")
            try:
                reader = csv.DictReader(lines, delimiter=delimiter, strict=strict)
                names = list(reader.fieldnames or ())
                _check_columns(path, names)
                # As pandas calls them, so that one doesn't hide another.
                reader.fieldnames = [name or f"Unnamed: {n}" for n, name in enumerate(names)]
                return list(reader)
            except csv.Error as error:
                # A quote within a cell is what other readers forgive; a cell that never ends would
                # swallow the rest of the file.
                if not strict or "end of data" in str(error):
                    raise DataError(f"{path} isn't whole CSV ({error}); fetch it again.") from error
    finally:
        csv.field_size_limit(previous)
    return []


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """DataError where two columns have one name, since only one of them would be read."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path} has {names.count(twice)} columns named {twice!r:.60}; leave one of them, or "
            "get the file at its published revision."
        )


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """A list of rows, an object of rows, or JSON Lines that end in .json."""
    text = read_text(path, "table")
    if not text.strip() or _is_lines(text):
        yield from _read_lines(path)
        return
    # What pandas writes for an absent number is NaN.
    whole = parse_json(text, str(path), otherwise=_OTHERWISE, finite=False)
    if isinstance(whole, list):
        yield from (("", row) for row in cast("list[object]", whole))
    elif isinstance(whole, dict):
        yield from cast("dict[str, object]", whole).items()
    else:
        raise DataError(f"{path} holds {whole!r:.60}, which is neither a list nor an object.")


def _is_lines(text: str) -> bool:
    """Whether the first of several lines is JSON by itself."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(rest.strip())


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for _, row in json_lines(path, "table", _OTHERWISE, finite=False):
        yield "", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    pyarrow, parquet = _pyarrow(path)
    try:
        check_regular(path, "table", 1 << 40)  # it is read in batches
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from (("", row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet ({error}); fetch it again.") from error


def _pyarrow(path: Path) -> tuple[Any, Any]:
    """The package and its reader, which have no types; MissingDependencyError without them."""
    try:
        import pyarrow  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
        from pyarrow import parquet  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a Parquet file, which needs pyarrow; run: pip install 'care-vlm[parquet]'"
        ) from error
    return pyarrow, parquet
