"""Reading what others wrote: regular files of a bounded size, valid Unicode, strict JSON.

Every file that a user names is opened here, so that a named pipe, an endless device or a file of
many gigabytes is one sentence and never a hang or a full memory; every JSON text is parsed here, so
that one nested without end, or with a key twice, is one sentence too. Writing is in `storage`.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from care.errors import CareError, DataError

GIB = 1 << 30

MAX_BYTES = 4 * GIB
"""Largest file that is read whole; the tables of published suites with pictures stay below it."""

MAX_DEPTH = 100
"""Deepest nesting of JSON; what is nested deeper could be read but not written again."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# --- text -----------------------------------------------------------------------------------------


def valid_text(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that stands alone.

    Such a half (a truncated emoji, an odd token) is in a Python text and in JSON, but in no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid(value: Any) -> Any:
    """A value as JSON has it, or a tuple of texts, with `valid_text` applied to every text."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, list):
        return [valid(item) for item in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return tuple(valid(item) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, dict):
        return {valid(key): valid(item) for key, item in cast("dict[Any, Any]", value).items()}
    return value


# --- files ----------------------------------------------------------------------------------------


def check_regular(
    path: str | Path,
    what: str = "file",
    limit: int = MAX_BYTES,
    error: type[CareError] = DataError,
) -> int:
    """Size in bytes of a file that can be read whole.

    Raises `error` for one that isn't there, isn't a regular file, or is larger than `limit` bytes.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as failed:  # ValueError: a name with a NUL
        raise _unreadable(path, what, failed, error) from failed
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise error(f"The {what} {path} can't be read: it is {kind}; pass a regular file.")
    if found.st_size > limit:
        raise error(
            f"The {what} {path} can't be read: it has {found.st_size:,} bytes, above the limit of "
            f"{limit:,}; pass a smaller one."
        )
    return found.st_size


def read_file(
    path: str | Path,
    what: str = "file",
    limit: int = MAX_BYTES,
    error: type[CareError] = DataError,
) -> bytes:
    """The bytes of a regular file; raises what `check_regular` does."""
    check_regular(path, what, limit, error)
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)  # some files of the system state a size of 0
    except (OSError, MemoryError) as failed:
        raise _unreadable(path, what, failed, error) from failed
    if len(content) > limit:
        raise error(
            f"The {what} {path} can't be read: it has more than {limit:,} bytes, the limit; pass a "
            "smaller one."
        )
    return content


def read_text(
    path: str | Path,
    what: str = "file",
    limit: int = MAX_BYTES,
    error: type[CareError] = DataError,
) -> str:
    """The text of a regular file in UTF-8, without a byte-order mark."""
    content = read_file(path, what, limit, error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failed:
        raise error(
            f"The {what} {path} isn't UTF-8 text ({failed.reason} at byte {failed.start}); save it "
            "as UTF-8."
        ) from failed


def text_lines(path: str | Path, what: str = "file") -> Iterator[tuple[int, str]]:
    """Number and text of every line that isn't blank."""
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if line.strip():
            yield number, line


def file_digest(
    path: str | Path,
    what: str = "file",
    limit: int = 1 << 50,
    error: type[CareError] = DataError,
) -> str:
    """SHA-256 of a regular file in hexadecimal, read in pieces."""
    check_regular(path, what, limit, error)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as failed:
        raise _unreadable(path, what, failed, error) from failed


def _unreadable(
    path: str | Path, what: str, failed: Exception, error: type[CareError]
) -> CareError:
    reason = getattr(failed, "strerror", None) or str(failed) or type(failed).__name__
    return error(f"The {what} {path} can't be read ({reason}); check the path.")


# --- JSON -----------------------------------------------------------------------------------------


def parse_json(
    text: str | bytes,
    where: str,
    error: type[CareError] = DataError,
    otherwise: str = "correct it",
    finite: bool = True,
) -> Any:
    """The value of a JSON text.

    `where` names it in errors, which end with what to do `otherwise`. Without `finite`, NaN and
    infinity are let through, which pandas and some servers write.

    Raises `error` for what isn't JSON, holds a key twice, is nested deeper than `MAX_DEPTH`, or
    holds a number that no float can.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        hooks: dict[str, Any] = {"parse_int": _whole, "object_pairs_hook": _once}
        if finite:
            hooks |= {"parse_float": _finite, "parse_constant": _finite}
        value = json.loads(text, **hooks)
    except RecursionError as failed:
        raise error(f"{where} is nested too deeply; {otherwise}.") from failed
    except _TwiceError as failed:
        raise error(f"{where} holds the key {failed} twice; {otherwise}.") from failed
    except ValueError as failed:
        raise error(f"{where} isn't valid JSON ({failed}); {otherwise}.") from failed
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise error(f"{where} is nested deeper than {MAX_DEPTH} levels; {otherwise}.")
    return value


def read_json(
    path: str | Path,
    what: str = "file",
    error: type[CareError] = DataError,
    otherwise: str = "correct it",
) -> Any:
    """The value in a JSON file; raises what `read_text` and `parse_json` do."""
    return parse_json(read_text(path, what, error=error), str(path), error, otherwise)


def json_lines(
    path: str | Path, what: str = "file", otherwise: str = "correct it", finite: bool = True
) -> Iterator[tuple[int, Any]]:
    """Number and value of every line of a JSON Lines file that isn't blank.

    Raises what `read_text` and `parse_json` do, with the line's number.
    """
    for number, line in text_lines(path, what):
        yield number, parse_json(line, f"{path}, line {number}", otherwise=otherwise, finite=finite)


class _TwiceError(Exception):
    """A key is twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"{twice!r:.80}")
    return found


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number:.40} is not a finite number")
    return value


def _whole(number: str) -> int:
    _finite(number)  # one that no float holds would fail wherever it is used
    return int(number)


def _deeper(value: Any, depth: int) -> bool:
    """Whether a value is nested deeper than so many levels."""
    level = [value]
    for _ in range(depth):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True
