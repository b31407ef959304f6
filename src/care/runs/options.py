"""What users pass, checked in one way.

    require(config, {"draws": 1, "sizes": 2})    every named field is at least its bound
    named_options("api,model=m", "a judge")      ("api", {"model": "m"})
    check_file_name("pgd-32", "an attack")       "pgd-32"

Not here: what a field means, and checks of several fields together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from care.errors import UsageError

MANY = 10**9
"""Greatest number of examples, steps or bytes of anything that a user may ask for."""

MAX_BATCH = 2**20
"""Most examples at once, and most tokens of an answer; no memory holds more."""

MAX_SEED = 2**32 - 1
"""Greatest seed that every library takes."""

MAX_NAME = 80
"""Greatest length of a name that becomes that of a file."""

_FILE_NAME = re.compile(f"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")

_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{p}{n}" for p in ("COM", "LPT") for n in range(1, 10)}
"""Names that stand for devices on Windows, with any ending."""


def require(
    config: Any, least: Mapping[str, float], most: Mapping[str, float] | float = math.inf
) -> None:
    """UsageError unless every field named in `least` is None or a number within its bounds.

    `most` are greatest values by name, or one for all; no field may be infinite or NaN.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(value, bool) or not issubclass(type(value), Real) or value != value:
            raise UsageError(f"{name} must be a number, got {value!r:.40}.")
        if value < bound:
            raise UsageError(f"{name} must be at least {bound}, got {value}.")
        limit = most.get(name, math.inf) if isinstance(most, Mapping) else most
        if value > limit or value == math.inf:
            told = f"at most {limit:,}" if limit < math.inf else "finite"
            raise UsageError(f"{name} must be {told}, got {value!r:.40}.")


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
    """NAME[,option=value]… as a name and its options; UsageError for an option without a value or
    one that stands twice."""
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
