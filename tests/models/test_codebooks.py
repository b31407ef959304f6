"""Which models turn pictures into tokens of a codebook, and what is refused of them."""

import pytest
import torch
from torch import nn

from care.errors import ModelError
from care.models.codebooks import check_inputs, check_pictures, has_codebook


class Coded(nn.Module):
    def get_image_tokens(self) -> None: ...


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner


@pytest.mark.parametrize("model", [Coded(), Outer(Coded())])
def test_a_codebook_is_found_in_the_model_or_within(model):
    assert has_codebook(model)
    with pytest.raises(ModelError, match="m turns a picture into tokens of a codebook"):
        check_pictures(model, "m")


def test_others_have_none(vlm):
    assert not has_codebook(vlm.model)
    check_pictures(vlm.model, vlm.name)


def test_only_gradients_of_pixels_are_refused():
    pixels = torch.zeros(1, 3, 4, 4)
    embedded = torch.zeros(1, 2, 8, requires_grad=True)
    check_inputs(Coded(), "m", {"pixel_values": pixels, "inputs_embeds": embedded})
    with pytest.raises(ModelError, match="codebook"):
        check_inputs(Coded(), "m", {"pixel_values": pixels.requires_grad_()})
