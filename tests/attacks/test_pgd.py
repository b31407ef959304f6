"""The universal image attack on a tiny random LLaVA: constraints, edits, resuming, clean-up."""

import os
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from care.attacks import pgd
from care.attacks.optimisers import DescentState, advance
from care.attacks.pgd import universal_image
from care.attacks.presets import PRESETS, PGDConfig
from care.errors import ArtefactError, ModelError, StorageError, UsageError
from care.models.hooks import edit
from care.models.sites import Role, Site
from care.models.vlm import VLM
from kit.attacks import (
    CONFIG,
    EXAMPLES,
    START,
    TARGETS,
    Stop,
    attack,
    keeping,
    ordinary_loss,
    pixels,
    stopping,
    vlm,  # noqa: F401
)
from kit.refusals import refusals, refused
from kit.tiny import picture, tiny_llava, tiny_qwen2_5_vl, tiny_vlm

# -- the attack ------------------------------------------------------------------------------------


def test_loss_falls_by_a_clear_margin_and_stays_low_after_saving(vlm, tmp_path):
    result = attack(vlm, replace(CONFIG, steps=30, batch=5))
    assert len(result.losses) == 30
    assert result.losses[-1] < result.losses[0] - 1.0
    assert result.loss < result.losses[0] - 1.0
    assert abs(result.rounding) < 1e-3  # steps are whole 8-bit levels
    assert result.image.mode == "RGB" and result.image.size == (28, 28)
    # The saved file does the same through the model's ordinary path.
    result.image.save(tmp_path / "attack.png")
    shown = ordinary_loss(vlm, tmp_path / "attack.png")
    assert shown == pytest.approx(result.loss, abs=1e-4)


@pytest.mark.parametrize("epsilon", [1 / 255, 0.05, 32 / 255])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.filterwarnings("ignore:Rounding")
def test_image_stays_in_the_ball_and_uses_it(vlm, epsilon, momentum):
    config = PGDConfig(epsilon=epsilon, steps=6, step_size=0.03, batch=2, momentum=momentum)
    result = attack(vlm, config)
    change = np.abs(pixels(result.image) - pixels(START)).max()
    assert change == int(epsilon * 255 + 1e-6)


def test_unconstrained_pixels_stay_in_the_box(vlm):
    white = Image.new("RGB", (28, 28), "white")
    result = attack(vlm, replace(CONFIG, step_size=1.0, steps=3), start=white)
    assert set(np.unique(pixels(result.image))) == {0, 255}


def test_same_seed_same_image_other_seed_another(vlm):
    first, second = attack(vlm), attack(vlm)
    assert first.losses == second.losses
    assert first.image.tobytes() == second.image.tobytes()
    other = attack(vlm, replace(CONFIG, seed=1))
    assert other.image.tobytes() != first.image.tobytes()


def test_every_epoch_shows_every_request():
    config = replace(CONFIG, batch=3)
    seen = [row for step in range(5) for row in pgd.rows_of_step(step, 5, config)]
    assert [sorted(seen[begin : begin + 5]) for begin in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert len(pgd.rows_of_step(0, 2, config)) == 2


def test_the_tower_runs_once_a_step_on_one_image(vlm):
    seen = []
    tower = vlm.model.model.vision_tower
    hook = tower.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    attack(vlm, replace(CONFIG, steps=5))
    hook.remove()
    assert set(seen) == {1}
    assert len(seen) == 5 + 2 + 2  # the check against the model's own path, and the final measure


def test_coarse_rounding_is_reported(vlm, monkeypatch):
    monkeypatch.setattr(pgd, "_ROUNDING_TOLERANCE", 0.0)
    with pytest.warns(UserWarning, match="multiple of 1/255"):
        result = attack(vlm, replace(CONFIG, step_size=0.7 / 255, steps=5))
    assert result.rounding != 0


def test_images_of_the_examples_are_ignored(vlm):
    with_images = [replace(example, images=(picture(9), picture(8))) for example in EXAMPLES]
    result = universal_image(vlm, with_images, TARGETS, START, CONFIG)
    assert result.losses == attack(vlm).losses


def test_bfloat16_model():
    model, processor = tiny_llava()
    result = attack(VLM(model.bfloat16(), processor), replace(CONFIG, steps=15, batch=5))
    assert result.losses[-1] < result.losses[0]


def test_the_attack_adapts_to_an_edit(vlm):
    halve = {
        Site(1, "layer_out"): lambda h, roles: h * (1 - 0.5 * (roles == Role.IMAGE)[..., None])
    }
    with edit(vlm, halve):
        adapted = attack(vlm)
    assert adapted.image.tobytes() != attack(vlm).image.tobytes()


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [3, 7])
def test_interrupted_and_resumed_is_the_same_image(vlm, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(pgd, "SAVE_EVERY", 5)
    config = replace(CONFIG, momentum=0.9)
    whole = attack(vlm, config)

    file = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        attack(vlm, config, progress=stopping(stop_at), checkpoint=file)
    steps = []
    resumed = attack(vlm, config, progress=lambda step, loss: steps.append(step), checkpoint=file)
    assert steps == list(range(stop_at + 1, config.steps + 1))
    assert resumed.losses == whole.losses
    assert resumed.loss == whole.loss
    assert resumed.image.tobytes() == whole.image.tobytes()


def test_killed_between_checkpoints_goes_on_from_the_last(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(pgd, "SAVE_EVERY", 5)
    file, copy = tmp_path / "state.safetensors", tmp_path / "killed.safetensors"
    whole = attack(vlm, progress=keeping(8, file, copy), checkpoint=file)
    steps = []
    resumed = attack(vlm, progress=lambda step, loss: steps.append(step), checkpoint=copy)
    assert steps[0] == 6
    assert resumed.image.tobytes() == whole.image.tobytes()


def test_a_finished_checkpoint_can_be_read_and_extended_but_not_shortened(vlm, tmp_path):
    file = tmp_path / "state.safetensors"
    first = attack(vlm, replace(CONFIG, steps=4), checkpoint=file)
    again = attack(vlm, replace(CONFIG, steps=4), checkpoint=file, progress=pytest.fail)
    assert again.image.tobytes() == first.image.tobytes()
    with pytest.raises(UsageError, match="4 steps in"):
        attack(vlm, replace(CONFIG, steps=2), checkpoint=file)
    longer = attack(vlm, CONFIG, checkpoint=file)
    assert longer.image.tobytes() == attack(vlm).image.tobytes()


def test_a_checkpoint_of_another_attack_is_refused(vlm, tmp_path, monkeypatch):
    file = tmp_path / "state.safetensors"
    attack(vlm, replace(CONFIG, steps=1), checkpoint=file)

    def other(config=CONFIG, targets=TARGETS, start=START):
        with pytest.raises(UsageError, match="another attack"):
            universal_image(vlm, EXAMPLES, targets, start, config, checkpoint=file)

    other(replace(CONFIG, seed=5))
    other(targets=TARGETS[::-1])
    other(start=picture(4))
    for part, name, value in (
        (vlm.processor, "chat_template", vlm.processor.chat_template + "!"),
        (vlm.processor.image_processor, "image_mean", [0.25, 0.25, 0.25]),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(part, name, value)
            other()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_checkpoints_that_cant_be_used_are_refused(vlm, tmp_path):
    pipe, cut, within = (tmp_path / name for name in ("pipe", "cut", "file/state.safetensors"))
    os.mkfifo(pipe)
    attack(vlm, replace(CONFIG, steps=1), checkpoint=cut)
    cut.write_bytes(cut.read_bytes()[:200])
    within.parent.write_text("in the way")
    for file, error, words in (
        (pipe, ArtefactError, "named pipe"),
        (cut, ArtefactError, "delete it"),
        (within, StorageError, "Could not write"),
    ):
        with refused(error, words):
            attack(vlm, replace(CONFIG, steps=1), checkpoint=file)


# -- the model afterwards --------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    vlm = tiny_vlm()
    model = vlm.model
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    model.model.vision_tower.train()
    frozen = [name for name, _ in model.named_parameters()][::3]
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    inside = []

    def look(step, loss):
        inside.append(model.model.vision_tower.training)
        inside.extend(weight.requires_grad for weight in model.parameters())
        inside.append(model.config.vision_config._attn_implementation != "eager")
        if fails:
            raise Stop

    with pytest.raises(Stop) if fails else nullcontext():
        attack(vlm, replace(CONFIG, steps=2), progress=look)
    assert not any(inside)
    assert {name for name, w in model.named_parameters() if not w.requires_grad} == set(frozen)
    assert all(module.training for module in model.model.vision_tower.modules())
    assert not model.training and not model.model.language_model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


# -- bad input -------------------------------------------------------------------------------------


def test_presets_are_the_two_attacks():
    assert set(PRESETS) == {"pgd-32", "pgd-unconstrained"}
    assert PRESETS["pgd-32"].epsilon == 32 / 255
    assert PRESETS["pgd-unconstrained"].epsilon is None


WRONG = {
    "epsilon": [0.001, float("nan"), 32],
    "steps": [0],
    "step_size": [0, float("nan"), 1.5],
    "batch": [0],
    "target_tokens": [0],
    "momentum": [-0.1],
    "seed": [-1],
    "method": ["fgsm"],
    "restarts": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name in WRONG for v in WRONG[name]])
def test_wrong_settings_are_refused(name, value):
    with refused(UsageError, name):
        replace(CONFIG, **{name: value})


def few(vlm, n, targets):
    universal_image(vlm, EXAMPLES[:n], targets, START, CONFIG)


test_requests_and_targets_have_to_fit = refusals(
    (UsageError, "at least one request", lambda vlm: few(vlm, 0, [])),
    (UsageError, "5 requests need as many targets, got 4", lambda vlm: few(vlm, 5, TARGETS[:4])),
    (UsageError, "'g1'.*no tokens", lambda vlm: few(vlm, 2, ["Sure", ""])),
)


def test_a_processor_that_makes_patches_is_refused():
    model, processor = tiny_qwen2_5_vl()
    with pytest.raises(ModelError, match="StubProcessor can't be differentiated through"):
        attack(VLM(model, processor))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda values: -values, "does more than resize once"),
        (lambda values: np.stack([values] * 2, 1), r"one image becomes \(1, 2, 3, 28, 28\)"),
    ],
    ids=["inverts", "makes crops"],
)
def test_a_processor_that_does_more_than_normalise_is_refused(odd, words):
    class Odd(SiglipImageProcessorPil):
        def __call__(self, *args, **kwargs):
            made = super().__call__(*args, **kwargs)
            made["pixel_values"] = odd(made["pixel_values"])
            return made

    vlm = tiny_vlm()
    vlm.processor.image_processor = Odd(size={"height": 28, "width": 28})
    with pytest.raises(ModelError, match=words):
        attack(vlm)


def test_a_model_that_uses_its_image_tokens_otherwise_is_refused(vlm, monkeypatch):
    features = vlm.model.get_image_features

    def doubled(**kwargs):
        output = features(**kwargs)
        output.pooler_output = [2 * tokens for tokens in output.pooler_output]
        return output

    monkeypatch.setattr(vlm.model, "get_image_features", doubled)
    with pytest.raises(ModelError, match="can't be reproduced"):
        attack(vlm)


def test_a_loss_that_is_not_finite_is_refused():
    state = DescentState.at(torch.zeros(3, 2, 2))
    with pytest.raises(ModelError, match="not finite at step 1"):
        advance(state, float("nan"), torch.ones(3, 2, 2), 0, 1, CONFIG)
