"""What one request from outside may hold: the limits that every surface has.

Plain data, in which a surface's own limits stand beside these. Not here: what is told of a request
beyond one of them, which each surface words for those who ask it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from care.runs.settings import MANY, MAX_BATCH, Between, check_bounds


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one request may hold."""

    max_images: Annotated[int, Between(0, 1000)] = 8
    """Pictures of a request."""
    max_image_bytes: Annotated[int, Between(1, MANY)] = 10 * 2**20
    """Bytes of a picture's file."""
    max_pixels: Annotated[int, Between(1, MANY)] = 16_000_000
    """Pixels of all pictures of a request together, known before any of them is decoded."""
    max_prompt_tokens: Annotated[int, Between(1, MAX_BATCH)] = 16_384
    """Tokens of a request with its earlier turns, those of its pictures included."""

    def __post_init__(self) -> None:
        check_bounds(self)
