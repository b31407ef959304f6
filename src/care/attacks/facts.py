"""What the folder of an attack is told by: its files, field by field.

    attack.json      an image that was descended, and how (`job`)
    pictures.json    pictures in variants (`pictures`)
    suffixes.json    suffixes that were searched (`gcg`), beside state-K.json, the trace of each

Types alone, without torch, so that an evaluation's table and page can be made of a folder. What is
made, and what is refused, is in the modules named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from care.attacks.presets import PGDConfig

SCHEMA = "care.attack/1"
"""Version of the layout of attack.json."""

IMAGE = "attack.json"
"""What the folder of an image is told by."""

PICTURES = "pictures.json"
"""What a folder of pictures is told by."""

SUFFIXES = "suffixes.json"
"""What a folder of suffixes is told by."""

ALL = "*"
"""Stands for every request among those that a picture or a suffix is made for."""


def trace_of(number: int) -> str:
    """Name of the checkpoint of a folder's suffix number `number`."""
    return f"state-{number}.json"


@dataclass(frozen=True, kw_only=True)
class SavedImage:
    """The picture as it was written, and how it was reached; older versions told less."""

    file: str = "image.png"
    """Its name in the folder."""
    sha256: str
    """SHA-256 of the file."""
    loss: float
    """Loss that the attack reached."""
    saved_loss: float | None = None
    """Loss of the file, read back."""
    rounding: float | None = None
    """What rounding to 8 bit adds to the loss."""
    restart: int = 0
    """Number of the attempt that reached it."""
    losses: tuple[float, ...] = ()
    """Loss after each step."""


@dataclass(frozen=True, kw_only=True)
class AttackFacts:
    """What attack.json holds; what has a default isn't needed to go on with an image."""

    schema: str = SCHEMA
    """Version of the layout."""
    model: str | None = None
    """Name of the model."""
    preset: str | None = None
    """Name of the published attack."""
    loss_of: str | None = None
    """What the loss is taken of."""
    config: PGDConfig
    """How the image was optimised."""
    requests: int = 0
    """Number of requests that it was optimised on."""
    repair: str | None = None
    """Name of the repair that it knows; none of the bare model."""
    gate: str | None = None
    """How it was taken through the repair's gate."""
    made_of: dict[str, Any] = field(default_factory=dict[str, Any])
    """What decides the image, see `made_of`."""
    evasion: float | None = None
    """Weight of passing the gate."""
    images: dict[Literal["image"], SavedImage]
    """The picture."""


@dataclass(frozen=True, kw_only=True)
class MadePicture:
    """A finished picture."""

    variant: str
    """The variant that shows it."""
    request: str = ALL
    """Id of the request it was made for; `*` is for all."""
    file: str
    """Its name in the folder."""
    sha256: str
    """SHA-256 of the file."""
    loss: float
    """Its loss (nats a token) under what is attacked."""
    losses: tuple[float, ...]
    """Loss of each step of the attempt that was kept."""


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What pictures.json holds."""

    made_of: dict[str, str]
    """Digests of the model, the defense, the requests and the settings."""
    steps: int
    """Most steps of each attempt."""
    pictures: tuple[MadePicture, ...] = ()
    """Those that are finished."""


@dataclass(frozen=True, kw_only=True)
class SuffixFacts:
    """What suffixes.json holds."""

    made_of: dict[str, str]
    """Digests of the model, the defense, the requests and the settings."""
    steps: int
    """Steps of each search."""
    loss: float
    """Mean loss of the suffixes under the defense that they were searched on."""
    suffixes: dict[str, str]
    """What is appended, by the id of the request; `*` is for all."""


@dataclass(frozen=True)
class SuffixState:
    """Everything that a step changes."""

    now: list[int]
    """Tokens of the suffix that the next step begins with."""
    best: list[int]
    """Tokens of the suffix with the least loss."""
    least: float
    """Its loss."""
    losses: tuple[float, ...] = ()
    """Loss of the suffix that each step began with."""


@dataclass(frozen=True)
class SuffixTrace:
    """What a checkpoint holds."""

    digest: str
    """SHA-256 of what is searched."""
    state: SuffixState
    """How far the search has come."""
