"""Requests with other pictures in place of theirs, which defenses of inputs share.

What is drawn at random depends on a seed and on the picture alone, so that an answer depends on the
request and not on what was asked before. It is no secret from an attacker who knows the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from care.data.digests import picture_digest
from care.data.example import Example

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
"""(RGB picture, what it may draw from) -> another picture."""


def repictured(example: Example, change: Change, seed: int = 0, draw: int = 0) -> Example:
    """The example with each of its pictures changed; itself where there is none."""
    if not example.images:
        return example
    found = [change(image, drawing(image, seed, draw)) for image in example.load_images()]
    return replace(example, images=tuple(found))


def drawing(image: Image.Image, seed: int, draw: int) -> np.random.Generator:
    """What is drawn from for a picture; another `draw` is independent of it."""
    told = bytes.fromhex(picture_digest(image))
    return np.random.default_rng([seed, draw, *np.frombuffer(told, np.uint32).tolist()])


def noisy(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """x + σ z with z ~ N(0, 1), of pixels x in [0, 1], which are cut and rounded to 8 bits."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    noise = rng.standard_normal(pixels.shape) * (255 * sigma)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))
