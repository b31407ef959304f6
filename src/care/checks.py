"""What users pass, checked in one way.

    require(config, {"draws": 1, "sizes": 2})    every named field is at least its bound
    require_level(config.level)                  0 < level < 1
    named_options("api,model=m", "a judge")      ("api", {"model": "m"})

Not here: what a field means, and checks of several fields together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from care.errors import UsageError


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


def named_options(wanted: str, what: str) -> tuple[str, dict[str, str]]:
    """NAME[,option=value]… as a name and its options; UsageError for an option without a value."""
    name, *parts = (part.strip() for part in wanted.split(","))
    options: dict[str, str] = {}
    for part in parts:
        key, sign, value = part.partition("=")
        if not sign or not key or not value:
            raise UsageError(
                f"An option of {what} is written option=value, got {part!r} in {wanted!r}."
            )
        if key in options:
            raise UsageError(f"The option {key} of {what} is there twice in {wanted!r}; leave one.")
        options[key] = value
    return name, options
