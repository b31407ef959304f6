"""Rows with keys, appended to a JSON Lines file that survives being killed at any moment.

A row is there whole or not at all: `add` returns after the bytes are on disk, a line that a kill
tore in two is dropped at the next start, and a failed write (full disk) is taken back. Without a
path the rows live in memory only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from care.errors import DataError, UsageError
from care.runs.files import NO_LINK, Place, storage_errors, to_json, write_all
from care.runs.reading import parse_json, read_file, valid_text

Row = dict[str, Any]


class Rows:
    """An append-only table of rows, each with a text `key` of its own.

    Raises: DataError when a line other than the last is damaged; StorageError when the file can't
    be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        self._file: int | None = None
        self._place: Place | None = None
        self._size = 0
        if path is not None:
            self._size, size = self._read(path)
            if self._size < size:
                with storage_errors(f"drop the torn last line of {path}"):
                    os.truncate(path, self._size)
            with storage_errors(f"open {path}"):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINK
                self._file = os.open(path, flags, 0o644)
            self._place = Place(path, self._file)

    @classmethod
    def reading(cls, path: Path) -> Rows:
        """The rows that are in a file now, none where there is no file, to be read alone.

        Nothing is written to it: what looks like a torn last line may be one that another process
        is about to finish.
        """
        found = cls()
        found.path = path
        found._read(path)
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return valid_text(key) in self._rows

    def get(self, key: str) -> Row | None:
        """The row with this key, or None."""
        return self._rows.get(valid_text(key))

    def all(self) -> list[Row]:
        """All rows, in the order in which they were added."""
        return list(self._rows.values())

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append rows with one write and one sync; all of them are on disk on return.

        Raises: UsageError for a row without a new, non-empty key or one that JSON can't hold;
        StorageError when the disk is full, after which the file is as it was before, or the file
        was deleted or replaced.
        """
        if not rows:
            return
        plain: dict[str, Row] = {}
        for row in rows:
            key = row.get("key")
            key = valid_text(key) if isinstance(key, str) else key
            if not isinstance(key, str) or not key or key in self._rows or key in plain:
                raise UsageError(
                    f"A row of {self.path or 'this run'} needs a key of its own, but got {key!r}; "
                    "ask has(key) before adding."
                )
            plain[key] = json.loads(to_json(row))
        if self.path is not None:
            self._append("".join(to_json(row) + "\n" for row in plain.values()).encode())
        self._rows |= plain

    def close(self) -> None:
        """Release the file. Every row is on disk already."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, data: bytes) -> None:
        file, place = self._file, self._place
        if file is None or place is None:
            raise UsageError(f"{self.path} is closed; open the run again to add rows.")
        try:
            place.check()
            with storage_errors(f"add rows to {self.path}; the earlier {len(self)} are kept"):
                write_all(file, data)
                os.fsync(file)
            place.check()
        except BaseException:
            # A torn line in the middle of the file could not be told from damage later.
            with suppress(OSError):
                os.ftruncate(file, self._size)
            raise
        self._size += len(data)

    def _read(self, path: Path) -> tuple[int, int]:
        """Read the rows but for a torn last line: bytes of them, and of the file."""
        with storage_errors(f"read {path}"):
            data = read_file(path, "file of rows") if path.exists() else b""
        *lines, torn = data.split(b"\n")
        good = 0
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is None and number == len(lines) and not torn:
                break  # after a power cut the last line may be there in length but not in content
            if row is None or row["key"] in self._rows:
                raise DataError(
                    f"Line {number} of {path} isn't a row with a key of its own; something else "
                    "changed the file, so delete that line to resume."
                )
            self._rows[row["key"]] = row
            good += len(line) + 1
        return good, len(data)


def _parse(line: bytes) -> Row | None:
    try:
        found = parse_json(line, "a row")
    except DataError:
        return None
    row = cast("Row", found) if isinstance(found, dict) else {}
    return row if isinstance(row.get("key"), str) else None
