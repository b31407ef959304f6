"""The objective of an attack: pixels as the processor makes them, likelihood, gradient, edits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from care.attacks.loss import Objective
from care.attacks.preprocessing import PixelPath
from care.errors import ModelError
from care.models.hooks import edit
from care.models.sites import Role, Site
from care.models.vlm import VLM
from kit.attacks import (
    CONFIG,
    GOALS,
    START,
    TARGETS,
    attack,
    beside,
    check_gradient,
    objective,
    ordinary_loss,
    target_ids,
    vlm,  # noqa: F401
)
from kit.tiny import LAYERS, picture, tiny_llava


def blocking() -> dict:
    """Edits that keep everything of the image from reaching the text."""

    def where(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask[..., None], torch.zeros_like(h), h)

    return {
        Site(0, "mhsa_out"): lambda h, roles: where(h, roles != Role.IMAGE),
        Site(0, "layer_out"): lambda h, roles: where(h, roles == Role.IMAGE),
    }


def test_pixels_become_what_the_processor_makes_of_them(vlm):
    path, levels = PixelPath.of(vlm, START)
    assert levels.shape == (3, 28, 28)
    assert np.array_equal(levels.permute(1, 2, 0), np.asarray(START))
    torch.testing.assert_close(path(levels / 255), path.process(START), atol=1e-5, rtol=0)


def test_other_sizes_and_normalisations_follow_the_processor():
    model, processor = tiny_llava()
    processor.image_processor = SiglipImageProcessorPil(
        size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    vlm = VLM(model, processor)
    path, levels = PixelPath.of(vlm, picture(1, (60, 41)))
    resized = path.process(picture(1, (60, 41)))
    step = 1 / 255 / 0.224  # one 8-bit level, normalised
    assert (path(levels / 255) - resized).abs().max() <= 0.51 * step
    result = attack(vlm, replace(CONFIG, steps=1), start=picture(1, (60, 41)))
    assert result.image.size == (28, 28)


def test_alpha_in_the_start_image_lies_on_white(vlm):
    _, levels = PixelPath.of(vlm, Image.new("RGBA", (28, 28), (0, 0, 0, 0)))
    assert bool((levels == 255).all())


def test_loss_is_the_likelihood_of_the_first_tokens_by_the_ordinary_path(vlm):
    loss_of, levels = objective(vlm)
    found = loss_of.loss(loss_of.path(levels / 255), list(range(len(GOALS))), 8)
    assert found == pytest.approx(ordinary_loss(vlm, START), abs=1e-4)


def test_gradient_equals_that_of_pixel_values_repeated_for_every_row(vlm):
    loss_of, levels = objective(vlm)
    loss, gradient = loss_of.gradient(levels / 255, [0, 1, 2])
    ids = target_ids(vlm, 3)
    batch = vlm.batch(beside(START, 3), [vlm.tokenizer.decode(row) for row in ids])
    x = (levels / 255).requires_grad_()
    batch.inputs["pixel_values"] = loss_of.path(x).expand(3, -1, -1, -1)
    logits = vlm.forward(batch, logits_to_keep=5, grad=True)[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids).flatten())
    (expected_gradient,) = torch.autograd.grad(expected, x)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_gradient_agrees_with_finite_differences(vlm):
    loss_of, levels = objective(vlm, 2)
    check_gradient(loss_of, levels / 255)


def test_batching_changes_neither_loss_nor_gradient(vlm):
    loss_of, levels = objective(vlm)
    rows = list(range(len(GOALS)))
    _, together = loss_of.gradient(levels / 255, rows)
    alone = torch.stack([loss_of.gradient(levels / 255, [row])[1] for row in rows]).mean(0)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-3)
    losses = [loss_of.loss(loss_of.path(levels / 255), rows, size) for size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_short_targets_count_all_their_tokens(vlm):
    path, levels = PixelPath.of(vlm, START)
    loss_of = Objective(vlm, path, beside(START, 2), ["I", TARGETS[1]], 4)
    features = loss_of.features(path(levels / 255))
    total, count = loss_of.total([0, 1], features, grad=False)
    parts = [loss_of.total([row], features, grad=False) for row in (0, 1)]
    assert [part[1] for part in parts] == [1, 4]
    assert count == 5
    assert float(total) == pytest.approx(sum(float(part[0]) for part in parts), abs=1e-4)


# -- under an edit ---------------------------------------------------------------------------------


def test_an_active_edit_changes_the_gradient(vlm):
    loss_of, levels = objective(vlm)
    _, plain = loss_of.gradient(levels / 255, [0, 1])
    with edit(vlm, {Site(1, "layer_out"): lambda h, roles: h * 0.5}) as stats:
        _, edited = loss_of.gradient(levels / 255, [0, 1])
    assert stats.tokens > 0
    assert float(edited.abs().sum()) > 0
    assert not torch.allclose(plain, edited)


def test_roles_reach_the_edit(vlm):
    loss_of, levels = objective(vlm)
    seen = []

    def look(h, roles):
        seen.append(roles)
        return h

    with edit(vlm, {Site(LAYERS - 1, "layer_out"): look}):
        loss_of.gradient(levels / 255, [0, 1])
    counts = {role: (seen[0] == role).sum(dim=1).tolist() for role in Role}
    assert counts[Role.IMAGE] == counts[Role.RESPONSE] == [4, 4]
    assert min(counts[Role.PAD]) == 0 < max(counts[Role.PAD])


def test_blocked_image_tokens_leave_no_gradient(vlm):
    loss_of, levels = objective(vlm)
    with edit(vlm, blocking()):
        _, gradient = loss_of.gradient(levels / 255, [0, 1])
        assert float(gradient.abs().max()) == 0
        with pytest.raises(ModelError, match="doesn't depend on the image"):
            attack(vlm)
