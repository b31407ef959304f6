"""What vLLM's `additional_config` says of a repair, under the key `care`.

vLLM keeps compiled models, and takes one that was compiled without a repair for one with it, unless
its configuration differs: so the digest of the repair and the version of this package are part of
it, and both are held against what is there. `care export DIR --format vllm` writes all of it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from care._version import __version__
from care.defenses import artefact
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, UsageError
from care.typed import WHEN_SET, from_tree

KEY = "care"
"""The key in `additional_config`."""

OFF = "care_off"
"""What a request holds in `vllm_xargs` (`extra_args` of its sampling parameters) to be answered
without the repair: the word whose SHA-256 is `switch`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One repair, as vLLM is told of it."""

    repair: str
    """Its folder, as every machine that serves the model sees it."""
    digest: str
    """The SHA-256 that its artefact states."""
    version: str
    """The version of this package that serves it."""
    parts: Annotated[Literal["edits", "opened"] | None, WHEN_SET] = None
    """What of a repair is served: its edits without monitors, or these without gates too, as its
    dialogue has them after an alarm; none: all of it."""
    switch: Annotated[str | None, WHEN_SET] = None
    """The SHA-256 of the word by which a request is answered without it; none: no request is."""


def read_settings(additional_config: Any) -> Settings | None:
    """What is said of a repair; none where nothing is, UsageError where that is malformed."""
    said = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
    if said is None:
        return None
    what = "What --additional-config says of a repair"
    todo = "copy what care export DIR --format vllm prints"
    return from_tree(Settings, said, KEY, what=what, error=UsageError, todo=todo)


def load_repair(settings: Settings) -> Repair:
    """The edits that the settings mean, checked against what they state.

    Raises ArtefactError for another repair than they state, UsageError for another version of this
    package and for monitors that nobody has left out.
    """
    again = "take what care export DIR --format vllm prints now"
    if settings.version != __version__:
        raise UsageError(
            f"--additional-config was written by care {settings.version}, and care {__version__} "
            f"is installed here; {again}."
        )
    if not Path(settings.repair).is_dir():
        raise ArtefactError(
            f"There is no folder {settings.repair}, which --additional-config names as the repair; "
            "put it there on every machine, or name another."
        )
    data = artefact.load(settings.repair)
    found = artefact.digest(data)
    if found != settings.digest:
        raise ArtefactError(
            f"The repair in {settings.repair} has the digest {found[:12]}, but --additional-config "
            f"states {settings.digest[:12]!r}; {again}."
        )
    repair = Repair.of(data)
    if settings.parts == "opened":
        return repair.opened()
    if repair.monitors and settings.parts != "edits":
        raise UsageError(
            f"{repair.name} has monitors, and vLLM can only be given its edits, which do less; say "
            'so by "parts": "edits" in --additional-config.'
        )
    return repair.edits_only() if repair.monitors else repair


def is_off(arguments: Mapping[str, Any] | None, settings: Settings) -> bool:
    """Whether a request is to be answered without the repair: it holds the right word."""
    word = (arguments or {}).get(OFF)
    if not isinstance(word, str) or settings.switch is None:
        return False
    return hmac.compare_digest(hashed(word), settings.switch)


def hashed(word: str) -> str:
    """The SHA-256 by which `switch` knows a word."""
    return hashlib.sha256(word.encode()).hexdigest()
