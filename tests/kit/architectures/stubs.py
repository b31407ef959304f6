"""What stands in for a processor that needs a library which isn't installed here.

It writes what the family's own would write for an image of one tile, and makes its pixels by hand:
56 pixels square, 4 patches of 14 in a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

SIZE, PATCH, ROW = 56, 14, 4
Vision = Callable[[np.ndarray], dict[str, Any]]
"""(pixels (n, 3, 56, 56), one image a row) -> arguments of the model."""


class StandIn:
    """Writes `written` for each `image` of a text, and has `vision` make the pixels.

    Tokens called `typed`, if any, are of kind 1, as Gemma 4 asks for.
    """

    def __init__(
        self, tokenizer: Any, image: str, written: str, vision: Vision, typed: str = ""
    ) -> None:
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template
        self._image, self._written, self._vision, self._typed = image, written, vision, typed

    def apply_chat_template(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, **kwargs)

    def __call__(
        self, text: list[str], images: list[list[Image.Image]] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        texts = [row.replace(self._image, self._written) for row in text]
        inputs = dict(self.tokenizer(texts, return_token_type_ids=False, **kwargs))
        if self._typed:
            kind = inputs["input_ids"] == self.tokenizer.convert_tokens_to_ids(self._typed)
            inputs["mm_token_type_ids"] = kind.long()
        flat = [image for row in images or () for image in row]
        if flat:
            small = [np.asarray(image.resize((SIZE, SIZE)), np.float32) for image in flat]
            inputs |= self._vision(np.stack(small).transpose(0, 3, 1, 2) / 127.5 - 1)
        return inputs


def stand_in(image: str, written: str, vision: Vision, typed: str = "") -> Callable[[Any], StandIn]:
    """What makes one of a tokenizer."""
    return lambda tokenizer: StandIn(tokenizer, image, written, vision, typed)


def whole(pixels: np.ndarray) -> dict[str, Any]:
    """Images as they are."""
    return {"pixel_values": torch.tensor(pixels)}


def sized(pixels: np.ndarray) -> dict[str, Any]:
    """Images as they are, with their sizes (Mistral 3)."""
    return whole(pixels) | {"image_sizes": torch.tensor([[SIZE, SIZE]] * len(pixels))}


def patches(pixels: np.ndarray) -> np.ndarray:
    """Patches (n, 16, 3 · 14²) with the channels of a pixel side by side."""
    cut = pixels.reshape(-1, 3, ROW, PATCH, ROW, PATCH).transpose(0, 2, 4, 3, 5, 1)
    return cut.reshape(len(pixels), ROW * ROW, -1)


def cut(pixels: np.ndarray) -> np.ndarray:
    """Patches (n · 16, 3, 14, 14)."""
    cut = pixels.reshape(-1, 3, ROW, PATCH, ROW, PATCH).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(cut.reshape(-1, 3, PATCH, PATCH))


def gridded(pixels: np.ndarray) -> dict[str, Any]:
    """Patches of all images in one row, with their grids (Kimi K2.5)."""
    grids = torch.tensor([[1, ROW, ROW]] * len(pixels))
    return {"pixel_values": torch.tensor(cut(pixels)), "image_grid_thw": grids}


def timed(pixels: np.ndarray) -> dict[str, Any]:
    """The same, each patch flat and of two equal moments (MiniMax M3, Muse Glimmer)."""
    found = gridded(pixels)
    twice = found["pixel_values"].unsqueeze(2).expand(-1, -1, 2, -1, -1)
    return found | {"pixel_values": twice.flatten(1)}


def placed(pixels: np.ndarray) -> dict[str, Any]:
    """Patches (n, 16, 3 · 14²) with their columns and rows (Gemma 4 without a tower)."""
    places = np.stack(np.meshgrid(np.arange(ROW), np.arange(ROW)), axis=-1).reshape(-1, 2)
    return {
        "pixel_values": torch.tensor(patches(pixels) / 2 + 0.5),
        "image_position_ids": torch.tensor(places).expand(len(pixels), -1, -1),
    }


def last(pixels: np.ndarray) -> dict[str, Any]:
    """Patches (n · 16, 2, 14, 14, 3) of two equal moments, with the channels last (Inkling)."""
    found = cut(pixels).transpose(0, 2, 3, 1)[:, None]
    return {"pixel_values": torch.tensor(found.repeat(2, axis=1))}


def strung(pixels: np.ndarray) -> dict[str, Any]:
    """All patches in one line (1, 3, 14, n · 16 · 14), with the shapes of images (MiniCPM)."""
    line = cut(pixels).transpose(1, 2, 0, 3).reshape(1, 3, PATCH, -1)
    sizes = torch.tensor([[ROW, ROW]] * len(pixels), dtype=torch.int32)
    return {"pixel_values": torch.tensor(line), "target_sizes": sizes}


def flattened(pixels: np.ndarray) -> dict[str, Any]:
    """Patches with their shape and which of them there are (LFM2-VL)."""
    rows = torch.tensor(patches(pixels))
    return {
        "pixel_values": rows,
        "spatial_shapes": torch.tensor([[ROW, ROW]] * len(rows)),
        "pixel_attention_mask": torch.ones(rows.shape[:2], dtype=torch.long),
    }


def pooled(pixels: np.ndarray) -> dict[str, Any]:
    """Two crops of an image, each pooled to 2 × 2 tokens (Molmo2)."""
    crops = np.repeat(patches(pixels), 2, axis=0)
    within = np.arange(ROW * ROW).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    places = within[None] + ROW * ROW * np.arange(len(crops))[:, None, None]
    return {
        "pixel_values": torch.tensor(crops),
        "image_token_pooling": torch.tensor(places.reshape(-1, 4)),
        "image_grids": torch.tensor([[2, 2, 2, 2]] * len(pixels)),
        "image_num_crops": torch.tensor([2] * len(pixels)),
    }
