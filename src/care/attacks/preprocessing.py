"""From RGB in [0, 1] to what a vision tower is given, as a differentiable function.

Two kinds of processor are followed. LLaVA's resizes to one size, rescales and normalises,

    v = (255 s x − μ) / σ        s: rescale factor, μ and σ per channel

and Qwen2-VL's and Qwen2.5-VL's cut the result into patches of p × p pixels, m × m neighbours after
each other (the visual tokens that will be merged), every patch repeated for its two time steps:
one row (C · 2 · p²) per patch. Resizing isn't differentiated: an attack works on the image that the
model sees, at the size that the processor brings it to and leaves it at. Whatever a processor does
beyond that is found by comparing with the processor itself, and refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from care.data.images import load_image
from care.errors import ModelError
from care.models.codebooks import check_pictures
from care.models.vlm import VLM


@dataclass(frozen=True)
class Patches:
    """How an image (C, H, W) is cut into rows, in the manner of Qwen2-VL."""

    size: int
    """Side p of a patch in pixels."""

    merge: int
    """Side m of the square of patches that become one visual token."""

    times: int
    """Time steps of a patch; a still picture is the same in all."""

    @classmethod
    def of(cls, processor: Any) -> "Patches | None":
        """What an image processor says of itself; None if it doesn't cut."""
        names = ("patch_size", "merge_size", "temporal_patch_size")
        found = [getattr(processor, name, None) for name in names]
        if not all(isinstance(number, int) and number > 0 for number in found):
            return None
        return cls(*found)  # pyright: ignore[reportArgumentType]  all are whole numbers

    def cut(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (H/p · W/p, C · times · p²)."""
        channels, height, width = image.shape
        step, m, p = self.size * self.merge, self.merge, self.size
        parts = image.reshape(channels, height // step, m, p, width // step, m, p)
        parts = parts.permute(1, 4, 2, 5, 0, 3, 6)  # block row, block column, row, column, C, p, p
        parts = parts.unsqueeze(5).expand(*parts.shape[:5], self.times, p, p)
        return parts.reshape(-1, channels * self.times * p * p)

    def joined(self, rows: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `cut`, from the first time step of every patch."""
        step, m, p = self.size * self.merge, self.merge, self.size
        parts = rows.reshape(height // step, width // step, m, m, -1, self.times, p, p)[
            ..., 0, :, :
        ]
        return parts.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, height, width)


@dataclass(frozen=True)
class PixelPath:
    """A processor's way from RGB in [0, 1] to `pixel_values`, as a differentiable function."""

    processor: Any
    """The image processor."""

    mean: Tensor
    """Channel means (3, 1, 1), in [0, 1] units."""

    std: Tensor
    """Channel deviations (3, 1, 1)."""

    scale: float
    """Factor from [0, 1] to what is normalised; 1 for the usual rescaling by 1/255."""

    patches: Patches | None = None
    """How the normalised image is cut; None: it isn't."""

    @classmethod
    def of(cls, vlm: VLM, start: Image.Image) -> tuple["PixelPath", Tensor]:
        """The path, and `start` at the model's input size as 8-bit levels (3, H, W) in float32.

        Raises ModelError unless one image becomes one normalised image or the patches of one, and
        an 8-bit image of that size becomes the same `pixel_values` either way; and for a model that
        has a codebook for pictures.
        """
        check_pictures(vlm.model, vlm.name)
        name = type(getattr(vlm.processor, "image_processor", None) or vlm.processor).__name__
        try:
            path = cls._configured(vlm.processor.image_processor)
        except (AttributeError, TypeError, ValueError) as error:
            raise _not_differentiable(
                name, f"it has no plain mean and deviation ({error})"
            ) from error
        found = path._processed(load_image(start, "start image"))
        values, grid = found["pixel_values"], found.get("image_grid_thw")
        pixels = (path._image(values, grid, name) * path.std + path.mean) / path.scale
        levels = (pixels * 255).round().clamp(0, 255)
        again = path.process(to_picture(levels))
        # Half of the distance between two 8-bit levels.
        tolerance = 0.5 / 255 * path.scale / float(path.std.max())
        if again.shape != values.shape or not torch.allclose(
            path(levels / 255), again, rtol=0, atol=tolerance
        ):
            raise _not_differentiable(name, "it does more than resize once and normalise")
        return path, levels

    @classmethod
    def _configured(cls, processor: Any) -> "PixelPath":
        normalises = getattr(processor, "do_normalize", True)
        mean, std = (
            torch.tensor(value, dtype=torch.float32).expand(3).reshape(3, 1, 1)
            for value in ((processor.image_mean, processor.image_std) if normalises else (0.0, 1.0))
        )
        factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        return cls(processor, mean, std, 255.0 * float(factor), Patches.of(processor))

    def __call__(self, pixels: Tensor) -> Tensor:
        """`pixel_values` of RGB (3, H, W) in [0, 1]: (1, 3, H, W), or rows of patches."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        normalised = (pixels * self.scale - mean) / std
        return normalised[None] if self.patches is None else self.patches.cut(normalised)

    def process(self, image: Image.Image) -> Tensor:
        """`pixel_values` from the processor itself, in float32."""
        return self._processed(image)["pixel_values"]

    def _processed(self, image: Image.Image) -> dict[str, Tensor]:
        found = dict(self.processor(images=[image], return_tensors="pt"))
        if "pixel_values" not in found:
            name = type(self.processor).__name__
            raise _not_differentiable(name, f"one image becomes {' and '.join(sorted(found))}")
        found["pixel_values"] = torch.as_tensor(found["pixel_values"]).float()
        return found

    def _image(self, values: Tensor, grid: Tensor | None, name: str) -> Tensor:
        """The normalised image (3, H, W) inside `pixel_values`."""
        if self.patches is None:
            if values.ndim != 4 or values.shape[:2] != (1, 3):
                raise _not_differentiable(name, f"one image becomes {tuple(values.shape)}")
            return values[0]
        p, merge = self.patches.size, self.patches.merge
        row = 3 * self.patches.times * p * p
        times, high, wide = (0, 0, 0) if grid is None else (int(n) for n in grid.flatten()[:3])
        fits = times == 1 and high % merge == 0 and wide % merge == 0
        if not fits or tuple(values.shape) != (high * wide, row):
            raise _not_differentiable(name, f"one image becomes {tuple(values.shape)}")
        return self.patches.joined(values, high * p, wide * p)


def to_picture(levels: Tensor) -> Image.Image:
    """8-bit RGB image of levels (3, H, W) between 0 and 255."""
    array = levels.detach().round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array))


def _not_differentiable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name} can't be differentiated through: {reason}; this attack needs a processor that "
        "resizes to one size and normalises, as LLaVA 1.5's does, or one that also cuts into "
        "patches, as Qwen2-VL's does."
    )
