"""Writing results so that nothing is lost: strict JSON, whole files, errors in one sentence.

A file is written beside its place, synced, and moved there: after a kill or an error it is there
whole or as it was before. JSON here is strict (no NaN), and every text is valid Unicode (half of a
surrogate pair becomes U+FFFD), so that any reader takes it. Reading is in `reading`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from care.errors import StorageError, UsageError
from care.runs.reading import valid_text

PART = ".part"
"""Ending of a file that is still being written."""

NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
"""Flag by which a file that is a symbolic link isn't opened, where the system has one: a folder
that was copied from somebody else must not lead to files outside of it."""


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(to_json(config, sort_keys=True).encode()).hexdigest()


def to_json(value: object, **options: Any) -> str:
    """Strict JSON of plain values, numpy scalars and arrays, paths and dataclasses.

    Raises: UsageError for NaN, infinity, values of other types, and those nested too deeply.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"This can't be written as JSON ({error}): {value!r:.200}.") from error
    except RecursionError as error:  # whose value has no repr either
        raise UsageError("This can't be written as JSON: it is nested too deeply.") from error
    return valid_text(text)


def write_whole(path: str | Path, content: bytes | str, make_folder: bool = True) -> Path:
    """Write a file so that it is there whole or, after a kill or an error, as it was before.

    Its folder is made where there is none, unless `make_folder` is False.
    """
    path = Path(path)
    data = valid_text(content).encode() if isinstance(content, str) else content
    with _whole(path, f"write {path}", make_folder) as part:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
    return path


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file, with its times, so that the copy is there whole or not at all; its folder is
    made."""
    with _whole(path, f"copy {source} to {path}") as part:
        shutil.copy2(source, part)


@contextmanager
def _whole(path: Path, doing: str, make_folder: bool = True) -> Generator[Path, None, None]:
    """A path to make a file at, which then takes its place; after an error nothing is left."""
    # A name of its own, for two processes may fill one cache with the same file.
    part = path.with_name(f"{path.name[:64]}.{secrets.token_hex(8)}{PART}")
    try:
        with storage_errors(doing):
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


class Place:
    """An open file and the path it was opened at: is it still there?

    What is written to a file that was deleted, or whose folder was, goes nowhere and without an
    error. File numbers tell; where a disk doesn't keep them (they differ already when the file is
    opened) the path must at least lead to a file.
    """

    def __init__(self, path: Path, file: int) -> None:
        self.path, self._file = path, file
        self._keeps_numbers = self._same()

    def check(self) -> None:
        """StorageError if the path leads to no file any more, or to another one."""
        if not (self._same() if self._keeps_numbers else self.path.exists()):
            raise StorageError(
                f"{self.path} was deleted or replaced while it was in use, so nothing more is "
                "written there; leave the folder alone during a run and start it again."
            )

    def _same(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return False


def write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # the system may take less than it is given
        view = view[os.write(file, view) :]


@contextmanager
def storage_errors(what: str) -> Generator[None, None, None]:
    """Turn the system's error into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"Could not {what} ({reason}); free space or correct the permissions, then resume."
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return cast("np.generic", value).tolist()
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
