"""ShiftDC: its calibration by hand, what is asked, and that only the last token is edited."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.data.example import Example
from care.defenses.rivals import shiftdc
from care.defenses.rivals.shiftdc import ShiftDC, captioned
from care.errors import FitError
from care.models.hooks import read
from care.models.sites import Site
from kit import fits, tiny


def made(layers=(1,), **options):
    rows = np.eye(tiny.WIDTH)[: len(layers)]
    return ShiftDC(layers=layers, direction=rows, caption_tokens=3, **options)


def test_the_part_of_a_shift_along_the_direction_is_taken_out():
    worded = np.zeros((2, 3), np.float32)
    worded[:, 0] = 1.0, 5.0
    defense = ShiftDC(layers=(4,), strength=0.5, direction=np.eye(1, 3))
    edit = defense.calibrated(Site(4, "layer_out"), worded)
    h = torch.tensor([[3.0, 7.0, 1.0], [2.0, 7.0, 1.0]])
    expected = torch.tensor([[2.0, 7.0, 1.0], [3.5, 7.0, 1.0]])
    torch.testing.assert_close(edit(h), expected)


def test_a_caption_stands_before_the_request():
    example = fits.asked("a", 1, "malicious", True, 0)[0]
    found = captioned(replace(example, opening="Sure"), " A dog. ")
    assert found.prompt == f"A dog.\n{example.prompt}" and not found.images and not found.opening
    assert found.kind == "malicious" and found.goal == example.goal
    wordless = Example("w", "", example.images)
    assert captioned(wordless, "A dog.").prompt == "A dog." and captioned(wordless, "").prompt


def test_requests_get_the_coordinate_of_the_same_in_words(vlm, monkeypatch):
    """At full strength what is along the direction is that of caption and text."""
    defense, site = made(), Site(1, "layer_out")
    examples = fits.asked("a", 3, "malicious", True, 0)
    asked = []

    def generate(examples, **how):
        asked.append(([example.prompt for example in examples], how["max_new_tokens"]))
        return [f"Picture {place}." for place in range(len(examples))]

    monkeypatch.setattr(vlm, "generate", generate)
    batch = vlm.batch(examples, ["No."] * 3)
    with read(vlm, [site]) as before:
        vlm.forward(batch)
    with defense.shifted(vlm, examples), read(vlm, [site]) as after:
        vlm.forward(batch)
    assert asked == [([shiftdc.QUESTION] * 3, 3)]
    expected = [
        fits.last_hidden(vlm, captioned(e, f"Picture {place}."), 1)[0]
        for place, e in enumerate(examples)
    ]
    np.testing.assert_allclose(after.rows(site, ("decision",))[:, 0], expected, atol=1e-4)
    moved = after[site][0] - before[site][0]
    assert not moved[..., 1:].any() and int(moved.any(-1).sum()) == 3


def test_requests_without_a_picture_are_the_bare_models(vlm):
    examples, how = tiny.mixed_examples(4), {"max_new_tokens": 4}
    plain = [example for example in examples if not example.images]
    opened = made().opened(vlm, examples, 4)
    assert opened.tolist() == [bool(example.images) for example in examples] and plain
    assert made().answer(vlm, plain, **how) == vlm.answers(plain, **how)
    assert not made(strength=0.0).opened(vlm, examples, 4).any()


def test_the_direction_is_from_unsafe_to_safe_text(vlm):
    material = fits.material(1, 1)
    found = ShiftDC.fit(vlm, [], [], material=material, depths=(0.5, 0.5))
    safe, unsafe = (
        np.mean([fits.last_hidden(vlm, e, 1) for e, _ in part if not e.images], axis=0)
        for part in (material.answered, material.refused)
    )
    expected = (safe - unsafe) / np.linalg.norm(safe - unsafe)
    np.testing.assert_allclose(found.direction[0], expected, atol=1e-4)
    pictured = tuple((e, a) for e, a in material.answered if e.images)
    with pytest.raises(FitError, match="answered benign requests without a picture number 0"):
        ShiftDC.fit(vlm, [], [], material=replace(material, answered=pictured))
