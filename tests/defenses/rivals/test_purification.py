"""Purification: each change against what it has to be, and what it has to leave."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from care.data.example import Example
from care.defenses.rivals.purification import Jpeg, Noise, Resize
from care.errors import UsageError
from kit.tiny import picture


def pixels(image):
    return np.asarray(image, dtype=np.float64)


def test_jpeg_keeps_a_plain_colour_and_loses_a_fine_pattern():
    """A picture of one grey is one coefficient of the cosine transform; a chequer the highest."""
    grey = Image.new("RGB", (16, 16), (96, 96, 96))
    chequer = Image.fromarray(np.uint8(96 + 8 * (np.indices((16, 16)).sum(0) % 2)), "L")
    rng = np.random.default_rng(0)
    assert np.abs(pixels(Jpeg().purified(grey, rng)) - 96).max() <= 1
    assert np.ptp(pixels(Jpeg(quality=10).purified(chequer, rng))) == 0
    assert np.ptp(pixels(Jpeg(quality=95).purified(chequer, rng))) >= 6


def test_a_picture_is_scaled_and_put_on_black():
    white = Image.new("RGB", (40, 20), (255, 255, 255))
    found = pixels(Resize(least=0.5, most=0.5).purified(white, np.random.default_rng(0)))
    assert found.shape == (10, 20, 3) and (found == 255).all()
    sizes = set()
    for seed in range(30):
        found = pixels(Resize(least=0.5, most=2.0).purified(white, np.random.default_rng(seed)))
        rows, columns = np.nonzero(found[..., 0])
        assert found.shape == (40, 80, 3)
        size = (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert size[0] == pytest.approx(2 * size[1], abs=1.5) and 20 <= size[0] <= 80
        assert (found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 255).all()
        sizes.add(size)
    assert len(sizes) > 10


def test_noise_has_its_mean_and_spread():
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    found = pixels(Noise().purified(grey, np.random.default_rng(0))) - 128
    assert found.mean() == pytest.approx(0, abs=0.6)
    assert found.std() == pytest.approx(255 * 0.12, rel=0.02)


@pytest.mark.parametrize("defense", [Jpeg(quality=20), Resize(least=0.5), Noise()])
def test_what_is_drawn_depends_on_the_picture_and_the_seed_alone(defense):
    one, two = (Example(f"e{seed}", "Look.", (picture(seed), picture(7))) for seed in (1, 2))
    first, again = defense.rewritten(one), defense.rewritten(one)
    assert first == again and first.images[0] != one.images[0]
    assert defense.rewritten(two).images[1] == first.images[1]
    other = type(defense)(seed=1).rewritten(one)
    assert type(defense) is Jpeg or other.images[0] != first.images[0]
    plain = Example("plain", "No picture.")
    assert defense.rewritten(plain) is plain


def test_settings_that_mean_nothing_are_one_sentence():
    for kind, wrong in (
        (Jpeg, {"quality": 0}),
        (Resize, {"least": 2.0}),
        (Resize, {"least": 0.0}),
        (Noise, {"sigma": -1.0}),
    ):
        with pytest.raises(UsageError, match="between"):
            kind(**wrong)
