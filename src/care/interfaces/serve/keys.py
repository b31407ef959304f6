"""Who may ask: keys from files and the environment, and how often each of them does.

    keys = Keys.read(Path("keys.txt"), None)     also from CARE_API_KEY and CARE_BARE_API_KEY
    keys.caller("Bearer …")                      Caller(3, bare=False), or a 401

Keys are kept as their SHA-256 and compared in constant time, with all of them, so that neither
memory nor a clock tells one; a log names a key by its number. Without keys everybody is caller 0,
who may not ask for the bare model. Not here: what they may ask for (`service`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from care.errors import DataError, UsageError
from care.interfaces.serve.failures import RequestFailure

KEYS_FROM, BARE_KEYS_FROM = "CARE_API_KEY", "CARE_BARE_API_KEY"
"""Environment variables that hold keys, separated by commas."""

LEAST = 16
"""Fewest characters of a key; a shorter one can be guessed."""

_FORM = re.compile(rf"[\x21-\x7e]{{{LEAST},200}}")


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    number: int
    """Which of the keys it showed, from 1; 0 where none are needed."""
    bare: bool = False
    """Whether it may ask for the bare model."""


class Keys:
    """The keys that may ask."""

    def __init__(self, keys: list[str], bare: list[str]) -> None:
        """UsageError for a key that can be guessed or that no header holds."""
        for place, key in enumerate([*keys, *bare], start=1):
            if not _FORM.fullmatch(key):
                # Not repeated: what is said ends up in logs.
                raise UsageError(
                    f"Key number {place} isn't {LEAST} to 200 letters, digits and signs without "
                    "spaces; make keys with `python -c 'import secrets; "
                    "print(secrets.token_urlsafe())'`."
                )
        self._digests = [(_digest(key), False) for key in keys if key not in bare]
        self._digests += [(_digest(key), True) for key in bare]

    @classmethod
    def read(cls, file: Path | None, bare_file: Path | None) -> Keys:
        """The keys of two files and of the environment; UsageError for a file without any."""
        return cls(
            [*_lines(file), *_of_environment(KEYS_FROM)],
            [*_lines(bare_file), *_of_environment(BARE_KEYS_FROM)],
        )

    def __bool__(self) -> bool:
        return bool(self._digests)

    def caller(self, authorization: str | None) -> Caller:
        """Who shows this header; RequestFailure unless it holds a key, or none is needed."""
        if not self._digests:
            return Caller(0)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("The request holds no key; send one as `Authorization: Bearer KEY`.")
        shown, found = _digest(key.strip()), None
        for number, (digest, bare) in enumerate(self._digests, start=1):
            if hmac.compare_digest(shown, digest):
                found = Caller(number, bare)
        if found is None:
            raise _refused("The request's key isn't one of this server's; check it.")
        return found


class RateLimit:
    """How many requests each caller has left: `per_minute` at once, and they come back evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left: dict[int, tuple[float, float]] = {}

    def take(self, caller: Caller) -> float:
        """Count a request: 0 if it may be made, or else the seconds until it may."""
        now = self._clock()
        left, since = self._left.get(caller.number, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        self._left[caller.number] = (left - (left >= 1), now)
        return 0.0 if left >= 1 else (1 - left) * 60 / self.per_minute


def _refused(message: str) -> RequestFailure:
    return RequestFailure(401, "invalid_api_key", message)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _lines(file: Path | None) -> Iterator[str]:
    if file is None:
        return
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The keys in {file} can't be read ({type(error).__name__}).") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(f"There is no key in {file}; write one a line, or leave the option out.")
    yield from keys


def _of_environment(name: str) -> list[str]:
    return [key.strip() for key in os.environ.get(name, "").split(",") if key.strip()]
