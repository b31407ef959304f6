"""Keys and passwords kept out of what is written and said.

    hidden(value)               text, or every text in a tree, without what looks like a secret:
                                NAME:PASSWORD@ in an address, a key in its query, tokens of known
                                forms, and the values of environment variables named as such
    without_key(text, key)      without one key that is known: as it is, percent- or base64-encoded,
                                and any piece of it that is long enough to be of use

A secret of no known form in a place where none is expected can't be told from other text.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast
from urllib.parse import quote, quote_plus

HIDDEN = "[hidden]"
"""Stands where a secret was."""

LEAST = 6
"""Fewest characters of a key that are hidden where only a piece of it is said."""

_LEAST_ENCODED = 12
_LEAST_OF_ENVIRONMENT = 8
_SECRET_NAME = r"(?:key|token|secret|passw|pwd|auth|sig|credential)"
_PATTERNS = [
    (re.compile(r"(?<=://)[^/\s?#'\"]*@"), f"{HIDDEN}@"),
    (re.compile(rf"([?&;][\w.-]*{_SECRET_NAME}[\w.-]*=)[^&;\s'\",#]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.I), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|xox[a-z]-[\w-]{10,}"
            r"|AKIA[A-Z0-9]{12,}|AIza[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        HIDDEN,
    ),
]
_ENVIRONMENT = re.compile(r"(?:^|_)(?:API)?(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")


def hidden(value: Any) -> Any:
    """`value`, a text or a tree of them, without what looks like a secret."""

    def without(text: str) -> str:
        for secret in _of_environment():
            text = text.replace(secret, HIDDEN)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text

    return _in_texts(value, without)


def without_key(value: Any, key: str) -> Any:
    """`value`, a text or a tree of them, without `key` in any of the forms that servers repeat."""

    def without(text: str) -> str:
        for form, least in _forms(key) if key else ():
            text = _without(text, form, least)
        return hidden(text)

    return _in_texts(value, without)


def _in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with a change made to every text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        tree = cast("Mapping[Any, Any]", value)
        return {name: _in_texts(item, change) for name, item in tree.items()}
    if isinstance(value, (list, tuple)):
        return [_in_texts(item, change) for item in cast("Sequence[Any]", value)]
    return value


def _of_environment() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    found = {
        value.strip()
        for name, value in os.environ.items()
        if _ENVIRONMENT.search(name.upper()) and len(value.strip()) >= _LEAST_OF_ENVIRONMENT
    }
    return sorted(found, key=len, reverse=True)


@cache
def _forms(key: str) -> tuple[tuple[str, int], ...]:
    """The key as it may be said, each with the fewest characters that count as a piece of it."""
    least = min(LEAST, len(key))
    forms = dict.fromkeys((key, quote(key, safe=""), quote(key), quote_plus(key)), least)
    forms |= dict.fromkeys((quote(key, safe="").lower(), repr(key)[1:-1]), least)
    for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
        forms.setdefault(
            alphabet(key.encode()).decode().rstrip("="), min(_LEAST_ENCODED, least + 2)
        )
        # Within "name:key" it begins at any of three places; the first and last signs are shared.
        for offset in range(3):
            inner = (
                alphabet(b"\0" * offset + key.encode()).decode().rstrip("=")[(0, 2, 3)[offset] : -1]
            )
            if len(inner) >= LEAST:
                forms.setdefault(inner, min(_LEAST_ENCODED, len(inner)))
    return tuple(forms.items())


def _without(text: str, secret: str, least: int) -> str:
    """`text` without any stretch of `least` characters or more that `secret` holds too."""
    parts: list[str] = []
    start = place = 0
    while place + least <= len(text):
        if text[place : place + least] not in secret:
            place += 1
            continue
        end = place + least
        while end < len(text) and text[place : end + 1] in secret:
            end += 1
        parts += [text[start:place], HIDDEN]
        start = place = end
    return "".join([*parts, text[start:]])
