"""PGD, MI-FGSM and APGD as formulas, restarts, random starts, presets, and the two losses."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from care.attacks import pgd
from care.attacks.optimisers import DescentState, advance, checkpoints, first_pixels, schedule
from care.attacks.pgd import corpus_requests, universal_image
from care.attacks.presets import PUBLISHED, PGDConfig, preset
from care.data.example import Example
from care.errors import UsageError
from kit import attacks
from kit.attacks import START, Stop, keeping, pixels, stopping, vlm  # noqa: F401

attack = partial(attacks.attack, n=3)
PGD = PGDConfig(epsilon=32 / 255, steps=12, step_size=4 / 255, batch=3)
APGD = PGDConfig(epsilon=32 / 255, steps=12, step_size=64 / 255, batch=3, method="apgd")


# -- formulas --------------------------------------------------------------------------------------


def test_momentum_accumulates_normalised_gradients():
    config = PGDConfig(epsilon=None, steps=9, step_size=0.1, momentum=0.5)
    state = DescentState.at(torch.full((1, 1, 2), 0.5))
    low, high = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    state = advance(state, 1.0, torch.tensor([[[3.0, -1.0]]]), low, high, config)
    torch.testing.assert_close(state.pixels, torch.tensor([[[0.4, 0.6]]]))
    state = advance(state, 1.0, torch.tensor([[[-1.0, 3.0]]]), low, high, config)
    # 0.5 · (0.75, −0.25) + (−0.25, 0.75) = (0.125, 0.625)
    torch.testing.assert_close(state.velocity, torch.tensor([[[0.125, 0.625]]]))
    torch.testing.assert_close(state.pixels, torch.tensor([[[0.3, 0.5]]]))


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == []


def test_the_step_is_halved_where_progress_stops():
    falling = tuple(float(-k) for k in range(30))
    assert schedule(falling, 100, 0.5) == (0.5, False)
    flat = (1.0,) * 23  # step 22 is the first checkpoint: nothing has become less
    assert schedule(flat[:22], 100, 0.5) == (0.5, False)
    assert schedule(flat, 100, 0.5) == (0.25, True)
    assert schedule((*flat, 1.0), 100, 0.5) == (0.25, False)
    # At the next checkpoint progress has been made throughout, so η stays.
    recovered = flat + tuple(1.0 - k for k in range(1, 20))
    assert schedule(recovered, 100, 0.5)[0] == 0.25


def test_a_halved_step_starts_at_the_best_image():
    config = replace(APGD, epsilon=None, steps=5, step_size=1.0)
    assert checkpoints(5) == [2, 3, 4]
    low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    state = DescentState.at(torch.full((1, 1, 1), 0.5))
    up = torch.full((1, 1, 1), -1.0)
    best = None
    for loss in (1.0, 2.0, 3.0):
        best = state.pixels if best is None else best
        state = advance(state, loss, up if loss == 1.0 else -up, low, high, config)
    assert torch.equal(state.best, best)
    # From 0.5 with η = 0.5 along the gradient found there, three quarters of the way.
    torch.testing.assert_close(state.pixels, torch.full((1, 1, 1), 0.5 + 0.75 * 0.5))


def test_apgd_finds_a_minimum_that_long_steps_miss():
    goal = torch.tensor([[[0.31, 0.47, 0.62]]])
    low, high = torch.zeros_like(goal), torch.ones_like(goal)

    def descend(config):
        state = DescentState.at(torch.full_like(goal, 0.9))
        for _ in range(config.steps):
            gap = state.pixels - goal
            state = advance(state, float(gap.square().sum()), 2 * gap, low, high, config)
        return float((state.best - goal).abs().max())

    fixed = PGDConfig(epsilon=None, steps=60, step_size=0.5)
    apgd = PGDConfig(epsilon=None, steps=60, step_size=0.5, method="apgd")
    assert descend(apgd) < 0.03
    assert descend(fixed) > 0.1


# -- starts and restarts ---------------------------------------------------------------------------


def test_random_starts_are_whole_levels_anywhere_in_the_ball():
    levels = torch.full((3, 28, 28), 120.0)
    assert torch.equal(first_pixels(levels, PGD, 0), levels / 255)
    start = first_pixels(levels, PGD, 1) * 255
    shift = start - levels
    assert float((start - start.round()).abs().max()) < 1e-4
    assert float(shift.min()) == pytest.approx(-32, abs=1e-3)
    assert float(shift.max()) == pytest.approx(32, abs=1e-3)
    noise = first_pixels(levels, replace(PGD, epsilon=None, random_start=True), 0)
    assert float(noise.min()) == 0 and float(noise.max()) == 1
    other = first_pixels(levels, replace(PGD, seed=1), 1)
    assert not torch.equal(other * 255, start)


@pytest.mark.filterwarnings("ignore:Rounding")
def test_restarts_keep_the_image_with_the_least_loss(vlm):
    config = replace(PGD, steps=3, restarts=3)
    seen = []
    result = attack(vlm, config, progress=lambda step, loss: seen.append(step))
    assert seen == list(range(1, 10))
    first, second = (attack(vlm, replace(config, restarts=n)).loss for n in (1, 2))
    assert first >= second >= result.loss
    assert np.abs(pixels(result.image) - pixels(START)).max() <= 32


def test_restarts_resume_to_the_same_image_and_more_can_be_asked_for(vlm, tmp_path):
    file = tmp_path / "state.safetensors"
    config = replace(PGD, steps=4, restarts=2)
    whole = attack(vlm, config)
    with pytest.raises(Stop):
        attack(vlm, config, progress=stopping(6), checkpoint=file)
    assert {file.stem for file in tmp_path.iterdir()} == {"state-1", "state"}
    steps = []
    resumed = attack(vlm, config, checkpoint=file, progress=lambda step, _: steps.append(step))
    assert steps == [7, 8]
    assert resumed.image.tobytes() == whole.image.tobytes()
    more = replace(config, restarts=3)
    assert attack(vlm, more, checkpoint=file).loss <= whole.loss


# -- APGD on a model -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Rounding")
def test_apgd_lowers_the_loss_inside_the_ball(vlm):
    result = attack(vlm, replace(APGD, steps=30))
    assert result.loss < result.losses[0] - 0.3
    assert result.loss == pytest.approx(min(result.losses), abs=0.1)
    assert np.abs(pixels(result.image) - pixels(START)).max() <= 32


@pytest.mark.filterwarnings("ignore:Rounding")
def test_apgd_resumes_to_the_same_image_but_not_with_other_steps(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(pgd, "SAVE_EVERY", 4)
    file, copy = tmp_path / "state.safetensors", tmp_path / "killed.safetensors"
    whole = attack(vlm, APGD, progress=keeping(7, file, copy), checkpoint=file)
    resumed = attack(vlm, APGD, checkpoint=copy)
    assert resumed.losses == whole.losses
    assert resumed.image.tobytes() == whole.image.tobytes()
    with pytest.raises(UsageError, match="another attack"):
        attack(vlm, replace(APGD, steps=20), checkpoint=file)


def test_apgd_sees_every_request_in_every_step(vlm):
    small = attack(vlm, replace(APGD, batch=1, steps=2))
    whole = attack(vlm, replace(APGD, batch=3, steps=2))
    assert small.losses == pytest.approx(whole.losses, abs=1e-4)


# -- the toxic loss --------------------------------------------------------------------------------


def test_the_toxic_loss_is_that_of_whole_sentences_after_an_empty_prompt(vlm):
    corpus = ["A small house from wood.", "Water, soap and a sponge are in this picture."]
    examples, targets = corpus_requests([*corpus, "  "])
    assert targets == corpus and all(e.prompt == "" for e in examples)
    config = replace(PGD, target_tokens=None, steps=15, epsilon=None, step_size=8 / 255)
    result = universal_image(vlm, examples, targets, START, config)
    shown = [Example(f"e{i}", "", (result.image,)) for i in range(2)]
    score = vlm.score(shown, corpus)
    assert result.loss == pytest.approx(-score.logprob.sum() / score.tokens.sum(), abs=1e-4)
    assert result.loss < result.losses[0] - 0.3
    with pytest.raises(UsageError, match="no sentences"):
        corpus_requests(["", " "])


# -- presets ---------------------------------------------------------------------------------------


def test_presets_are_those_of_the_papers():
    qi = preset("qi-32")
    assert (qi.loss, qi.config.steps, qi.config.batch) == ("toxic", 5000, 8)
    assert qi.config.step_size == 1 / 255 and qi.config.epsilon == 32 / 255
    assert qi.config.target_tokens is None and qi.config.random_start
    assert preset("qi-unconstrained").config.epsilon is None
    assert preset("astra-mi-fgsm-16").config.momentum == 1
    apgd = preset("astra-apgd-32").config
    assert apgd.method == "apgd" and apgd.step_size == 64 / 255
    care = preset("care-64")
    assert (care.loss, care.config.steps, care.config.batch) == ("jailbreak", 1000, 1)
    assert care.config.step_size == pytest.approx(0.25 / 255)
    for family in ("qi", "astra", "care"):
        assert {f"{family}-{r}" for r in ("16", "32", "64", "unconstrained")} <= set(PUBLISHED)
    with pytest.raises(UsageError, match="qi-16"):
        preset("gcg")


def test_apgd_takes_no_momentum_of_one_s_own():
    with pytest.raises(UsageError, match="momentum"):
        replace(APGD, momentum=0.5)
