"""Models that put a picture in as tokens of a codebook (Chameleon, Emu3, Apertus 1.5).

A patch becomes the nearest of a few thousand codes, and the code's embedding is all that the
decoder is given of it. Such tokens are image tokens like any others, to be read and edited; but
which code is nearest is a choice, through which no gradient passes. Not here: other reasons for
which an attack can't go through a model (`care.attacks.preprocessing`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from care.errors import ModelError


def has_codebook(model: Any) -> bool:
    """Whether pictures become tokens of a codebook, by what transformers calls the step."""
    parts = (model, getattr(model, "model", None))
    return any(hasattr(part, "get_image_tokens") for part in parts)


def check_pictures(model: Any, name: str) -> None:
    """ModelError if no gradient can reach the pictures of the model called `name`."""
    if has_codebook(model):
        raise ModelError(
            f"{name} turns a picture into tokens of a codebook, through which no gradient passes; "
            "attack it in words, or with finished pictures."
        )


def check_inputs(model: Any, name: str, inputs: Mapping[str, Any]) -> None:
    """The same, if gradients with respect to pixels among `inputs` are asked for."""
    if any(
        key.startswith("pixel") and isinstance(value, Tensor) and value.requires_grad
        for key, value in inputs.items()
    ):
        check_pictures(model, name)
