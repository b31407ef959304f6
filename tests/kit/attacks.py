"""Requests, wished-for answers and a start picture for attacks on a tiny model, and oracles."""

from dataclasses import replace

import numpy as np
import pytest

from care.attacks.loss import Objective
from care.attacks.pgd import universal_image
from care.attacks.preprocessing import PixelPath
from care.attacks.presets import PGDConfig
from care.data.example import Example
from kit.tiny import picture, tiny_vlm

GOALS = ["wash a car", "build a small house from wood", "do this", "picture soap and water", "help"]
EXAMPLES = [Example(f"g{i}", f"How do you {goal}?") for i, goal in enumerate(GOALS)]
TARGETS = [f"To {goal}, you'll need" for goal in GOALS]
START = picture(3, (28, 28))
CONFIG = PGDConfig(epsilon=None, steps=12, step_size=8 / 255, batch=3)


@pytest.fixture(scope="module")
def vlm():
    """A model that an attack leaves as it was."""
    return tiny_vlm()


def attack(vlm, config=CONFIG, n=5, start=START, **options):
    """The universal image of the first `n` requests."""
    return universal_image(vlm, EXAMPLES[:n], TARGETS[:n], start, config, **options)


def beside(image, n=5):
    """The first `n` requests beside one image."""
    return [replace(example, images=(image,)) for example in EXAMPLES[:n]]


def objective(vlm, n=5, start=START):
    """The loss of the first `n` requests, and the start picture's 8-bit levels (3, H, W)."""
    path, levels = PixelPath.of(vlm, start)
    return Objective(vlm, path, beside(start, n), TARGETS[:n], 4), levels


def target_ids(vlm, n=5):
    """The first four tokens of each target."""
    return [vlm.tokenizer(text, add_special_tokens=False)["input_ids"][:4] for text in TARGETS[:n]]


def ordinary_loss(vlm, image, n=5):
    """−log p a token of the targets' beginnings, by the model's ordinary path."""
    score = vlm.score(beside(image, n), [vlm.tokenizer.decode(ids) for ids in target_ids(vlm, n)])
    assert list(score.tokens) == [4] * n
    return -score.logprob.sum() / score.tokens.sum()


def check_gradient(loss_of, pixels, step=1e-3):
    """The gradient of the first two requests agrees with finite differences along it."""
    _, gradient = loss_of.gradient(pixels, [0, 1])
    direction = gradient / gradient.norm()
    ends = [loss_of.loss(loss_of.path(pixels + s * direction), [0, 1], 2) for s in (step, -step)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.05)


def pixels(image):
    """8-bit levels of a picture, which may be subtracted from one another."""
    return np.asarray(image).astype(int)


class Stop(Exception):
    """An attack was interrupted."""


def stopping(at):
    """A progress that interrupts after step `at`."""

    def stop(step, loss):
        if step == at:
            raise Stop

    return stop


def keeping(at, file, copy):
    """A progress that keeps what a kill at step `at` would leave of the checkpoint."""

    def keep(step, loss):
        if step == at:
            copy.write_bytes(file.read_bytes())

    return keep
