"""The differentiable image path of Qwen2-VL and Qwen2.5-VL against Hugging Face's own processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from care.attacks.pgd import image_loss
from care.attacks.preprocessing import Patches, PixelPath, to_picture
from care.errors import ModelError
from care.models.vlm import VLM
from kit import attacks, tiny

START = tiny.picture(3, (84, 56))


class Processor(Qwen2_5_VLProcessor):
    """The real processor, without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)


def processor(**options) -> Processor:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.image_token = "<image>"
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    tokenizer.video_token, tokenizer.video_token_id = "<eos>", 1  # in no prompt
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}, **options
    )
    return Processor(images, tokenizer, None, chat_template=tiny.TEMPLATE)


def qwen2_5(**options) -> VLM:
    return VLM(tiny.tiny_qwen2_5_vl()[0], processor(**options), "tiny-qwen2.5")


def qwen2() -> VLM:
    config = Qwen2VLConfig(
        text_config=tiny.text_config(
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]}
        ),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": tiny.WIDTH,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
        image_token_id=tiny.SPECIAL.index("<image>"),
        tie_word_embeddings=False,
    )
    return VLM(tiny.build(Qwen2VLForConditionalGeneration, config, 0), processor(), "tiny-qwen2")


@pytest.fixture(params=[qwen2_5, qwen2])
def vlm(request):
    return request.param()


def objective(vlm):
    return attacks.objective(vlm, 4, START)


@pytest.mark.parametrize("size", [(28, 28), (84, 56), (56, 112)])
def test_patches_are_cut_as_by_the_processor(size):
    image = tiny.picture(1, size)
    own = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112},
        do_normalize=False,
        do_rescale=False,
    )
    expected = torch.as_tensor(own(images=[image], return_tensors="pt")["pixel_values"]).float()
    levels = torch.tensor(np.asarray(image)).permute(2, 0, 1).float()
    patches = Patches.of(own)
    assert patches == Patches(14, 2, 2)
    assert torch.equal(patches.cut(levels), expected)
    assert torch.equal(patches.joined(expected, *levels.shape[1:]), levels)


@pytest.mark.parametrize("size", [(84, 56), (60, 41), (300, 200)])
def test_pixels_become_what_the_real_processor_makes_of_them(size):
    vlm = qwen2_5()
    path, levels = PixelPath.of(vlm, tiny.picture(1, size))
    assert levels.shape[1] % 28 == levels.shape[2] % 28 == 0
    found = vlm.processor.image_processor(images=[to_picture(levels)], return_tensors="pt")
    torch.testing.assert_close(path(levels / 255), found["pixel_values"], atol=1e-5, rtol=0)


def test_a_gradient_reaches_each_pixel_once_for_every_time_step():
    vlm = qwen2_5()
    path, levels = PixelPath.of(vlm, START)
    x = (levels / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(path(x).sum(), x)
    torch.testing.assert_close(gradient, (2 / path.std).expand_as(gradient))


def test_loss_is_the_likelihood_by_the_ordinary_path(vlm):
    loss_of, levels = objective(vlm)
    loss_of.verify(*attacks.beside(to_picture(levels), 1), levels)
    assert loss_of.shares and loss_of.rows.shared > 6  # the six visual tokens are read once
    expected = attacks.ordinary_loss(vlm, START, 4)
    for loss_of.shares in (True, False):
        found = loss_of.loss(loss_of.path(levels / 255), range(4), 4)
        assert found == pytest.approx(expected, abs=1e-4)


def test_gradient_agrees_with_finite_differences(vlm):
    loss_of, levels = objective(vlm)
    attacks.check_gradient(loss_of, levels / 255)


def test_an_attack_works_and_survives_being_saved(vlm, tmp_path):
    config = replace(attacks.CONFIG, steps=25, batch=4)
    result = attacks.attack(vlm, config, 4, START)
    assert result.loss < result.losses[0] - 1.0
    assert abs(result.rounding) < 1e-3
    result.image.save(tmp_path / "attack.png")
    saved = Image.open(tmp_path / "attack.png")
    shown = image_loss(vlm, attacks.EXAMPLES[:4], attacks.TARGETS[:4], saved, config)
    assert shown == pytest.approx(result.loss, abs=1e-4)


def test_a_processor_that_cuts_otherwise_is_refused():
    vlm = qwen2_5()
    own = vlm.processor.image_processor

    class Odd:
        def __getattr__(self, name):
            return getattr(own, name)

        def __call__(self, **given):
            found = own(**given)
            found["pixel_values"] = found["pixel_values"].flip(0)  # another order of the patches
            return found

    vlm.processor.image_processor = Odd()
    with pytest.raises(ModelError, match="more than resize once"):
        PixelPath.of(vlm, START)


def test_a_processor_that_makes_something_else_of_a_picture_is_refused():
    vlm = qwen2_5()
    own = vlm.processor.image_processor

    class Other:
        def __getattr__(self, name):
            return getattr(own, name)

        def __call__(self, **given):
            found = own(**given)
            return {"pixel_values_images": found["pixel_values"]}

    vlm.processor.image_processor = Other()
    with pytest.raises(ModelError, match="one image becomes pixel_values_images"):
        PixelPath.of(vlm, START)
