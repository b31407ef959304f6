"""What users pass, checked in one way.

    require(config, {"draws": 1, "sizes": 2})    every named field is at least its bound
    require_level(config.level)                  0 < level < 1
    named_options("api,model=m", "a judge")      ("api", {"model": "m"})
    check_file_name("pgd-32", "an attack")       "pgd-32"

Not here: what a field means, and checks of several fields together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from care.errors import UsageError

MAX_NAME = 80
"""Greatest length of a name that becomes that of a file."""

_FILE_NAME = re.compile(f"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")

_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{p}{n}" for p in ("COM", "LPT") for n in range(1, 10)}
"""Names that stand for devices on Windows, with any ending."""


def require(config: Any, least: Mapping[str, float]) -> None:
    """UsageError unless every field named in `least` is None or at least as great as its bound."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise UsageError(f"{name} must be at least {bound}, got {value}.")


def require_level(level: float) -> None:
    """UsageError unless `level`, a confidence level, lies strictly between 0 and 1."""
    if not 0.0 < level < 1.0:
        raise UsageError(f"level must lie between 0 and 1, got {level}.")


def check_file_name(name: str, what: str) -> str:
    """The name, if it can be that of a file on any system; UsageError names `what` it is of.

    Letters, digits, `.`, `_` and `-` of ASCII, not beginning with a dot or a sign, so that it can
    lead neither out of a folder nor into another.
    """
    reserved = name.partition(".")[0].upper() in _RESERVED or name.endswith((".", ".part"))
    if not _FILE_NAME.fullmatch(name) or reserved:
        raise UsageError(
            f"The name {name!r:.80} of {what} would be that of a file; use at most "
            f"{MAX_NAME} letters, digits, '.', '_' and '-', beginning with a letter or digit."
        )
    return name


def named_options(wanted: str, what: str) -> tuple[str, dict[str, str]]:
    """NAME[,option=value]… as a name and its options; UsageError for an option without a value."""
    name, *parts = (part.strip() for part in wanted.split(","))
    options: dict[str, str] = {}
    for place, part in enumerate(parts, start=1):
        key, sign, value = part.partition("=")
        if not sign or not key or not value:
            # Not repeated: a key that was pasted in the wrong place must not be said.
            raise UsageError(
                f"An option of {what} is written option=value, which number {place} after "
                f"{name!r} isn't."
            )
        if key in options:
            raise UsageError(f"The option {key} of {what} is there twice in {wanted!r}; leave one.")
        options[key] = value
    return name, options
