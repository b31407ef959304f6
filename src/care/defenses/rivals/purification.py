"""Purification: pictures are changed before the model sees them, so that small additions are lost.

    jpeg      compressed and opened again, at quality q
    resize    drawn from s ~ U[least, most], scaled by s, and put anywhere on black of `most`
    noise     x + σ z, z ~ N(0, 1), pixels in [0, 1]

jpeg: Guo et al. 2018, arXiv 1711.00117 (q = 75). resize: Xie et al. 2018, arXiv 1711.01991
(pictures of 299 pixels are scaled to 299 up to 331 and padded to 331). noise: one draw of the
Gaussian noise of Cohen et al. 2019, arXiv 1902.02918 (σ = 0.12, its smallest).

All three were published for classifiers; what was made for one picture in many copies is
`smoothing`. What is drawn depends on the picture (`care.defenses.pictures`). A request without a
picture stays as it is.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from care.data.example import Example
from care.defenses.base import register
from care.defenses.pictures import noisy, repictured
from care.defenses.stored import StoredDefense
from care.errors import UsageError


@dataclass(frozen=True, eq=False, kw_only=True)
class Purification(StoredDefense):
    """A defense that changes the pictures of requests."""

    touches = "request"

    seed: int = 0
    """Of what is drawn."""

    @abstractmethod
    def purified(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """What the model sees in the place of an RGB picture."""

    def rewritten(self, example: Example) -> Example:
        """The request with other pictures."""
        return repictured(example, self.purified, self.seed)


@register("jpeg")
@dataclass(frozen=True, eq=False, kw_only=True)
class Jpeg(Purification):
    """Pictures are compressed as JPEG."""

    paper: ClassVar[str] = "Guo et al. 2018, 1711.00117"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"quality": (10, 25, 50, 75, 90)}

    quality: int = 75
    """q, from 1 to 95."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.quality <= 95:
            raise UsageError(f"The quality of JPEG lies between 1 and 95, got {self.quality}.")

    def purified(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture, compressed."""
        file = io.BytesIO()
        image.convert("RGB").save(file, format="JPEG", quality=self.quality)
        return Image.open(file).convert("RGB")


@register("resize")
@dataclass(frozen=True, eq=False, kw_only=True)
class Resize(Purification):
    """Pictures are scaled and padded at random."""

    paper: ClassVar[str] = "Xie et al. 2018, 1711.01991"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"least": (0.25, 0.5, 0.75, 1.0)}

    least: float = 1.0
    """The least scale."""
    most: float = 331 / 299
    """The greatest, which is also that of what a picture is put on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least <= self.most <= 4:
            raise UsageError(
                "Scales of pictures lie between 0 and 4, the least not above the greatest; got "
                f"{self.least} and {self.most}."
            )

    def purified(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture on black, scaled and put somewhere at random."""
        found = Image.new("RGB", _scaled(image.size, self.most))
        size = _scaled(image.size, rng.uniform(self.least, self.most))
        left = int(rng.integers(found.width - size[0] + 1))
        top = int(rng.integers(found.height - size[1] + 1))
        found.paste(image.convert("RGB").resize(size, Image.Resampling.BILINEAR), (left, top))
        return found


@register("noise")
@dataclass(frozen=True, eq=False, kw_only=True)
class Noise(Purification):
    """Gaussian noise is added to pictures."""

    paper: ClassVar[str] = "Cohen et al. 2019, 1902.02918"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"sigma": (0.03, 0.06, 0.12, 0.25, 0.5)}

    sigma: float = 0.12
    """σ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma <= 10:
            raise UsageError(f"sigma must lie between 0 and 10, got {self.sigma!r:.40}.")

    def purified(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture with noise."""
        return noisy(image, self.sigma, rng)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    width, height = (max(round(each * scale), 1) for each in size)
    return width, height
