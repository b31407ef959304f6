"""The universal image attack on a tiny random LLaVA: objective, constraints, resuming, clean-up."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from care.attacks import pgd as pgd
from care.attacks.loss import Objective
from care.attacks.optimisers import DescentState, advance
from care.attacks.pgd import universal_image
from care.attacks.preprocessing import PixelPath
from care.attacks.presets import PRESETS, PGDConfig
from care.errors import ArtefactError, ModelError, StorageError, UsageError
from care.models.hooks import edit
from care.models.sites import Role, Site
from care.models.vlm import VLM
from kit.attacks import EXAMPLES, GOALS, START, TARGETS, pixels, vlm  # noqa: F401
from kit.tiny import LAYERS, picture, tiny_llava, tiny_qwen2_5_vl, tiny_vlm

CONFIG = PGDConfig(epsilon=None, steps=12, step_size=8 / 255, batch=3)


def attack(vlm: VLM, config: PGDConfig = CONFIG, **kwargs):
    return universal_image(vlm, EXAMPLES, TARGETS, START, config, **kwargs)


def objective(vlm: VLM, n: int = len(GOALS)) -> tuple[Objective, torch.Tensor]:
    path, levels = PixelPath.of(vlm, START)
    examples = [replace(example, images=(START,)) for example in EXAMPLES[:n]]
    return Objective(vlm, path, examples, TARGETS[:n], 4), levels


def blocking() -> dict:
    """Edits that keep everything of the image from reaching the text."""

    def where(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask[..., None], torch.zeros_like(h), h)

    return {
        Site(0, "mhsa_out"): lambda h, roles: where(h, roles != Role.IMAGE),
        Site(0, "layer_out"): lambda h, roles: where(h, roles == Role.IMAGE),
    }


# -- pixels and loss -------------------------------------------------------------------------------


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
    result = universal_image(vlm, EXAMPLES, TARGETS, picture(1, (60, 41)), replace(CONFIG, steps=1))
    assert result.image.size == (28, 28)


def test_alpha_in_the_start_image_lies_on_white(vlm):
    _, levels = PixelPath.of(vlm, Image.new("RGBA", (28, 28), (0, 0, 0, 0)))
    assert bool((levels == 255).all())


def test_loss_is_the_likelihood_of_the_first_tokens_by_the_ordinary_path(vlm):
    loss_of, levels = objective(vlm)
    ids = [vlm.tokenizer(text, add_special_tokens=False)["input_ids"][:4] for text in TARGETS]
    texts = [vlm.tokenizer.decode(row) for row in ids]
    examples = [replace(example, images=(START,)) for example in EXAMPLES]
    score = vlm.score(examples, texts)
    assert list(score.tokens) == [4] * len(GOALS)
    rows = list(range(len(GOALS)))
    expected = -score.logprob.sum() / score.tokens.sum()
    assert loss_of.loss(loss_of.path(levels / 255), rows, 8) == pytest.approx(expected, abs=1e-4)


def test_gradient_equals_that_of_pixel_values_repeated_for_every_row(vlm):
    loss_of, levels = objective(vlm)
    loss, gradient = loss_of.gradient(levels / 255, [0, 1, 2])
    examples = [replace(example, images=(START,)) for example in EXAMPLES[:3]]
    ids = [vlm.tokenizer(text, add_special_tokens=False)["input_ids"][:4] for text in TARGETS[:3]]
    batch = vlm.batch(examples, [vlm.tokenizer.decode(row) for row in ids])
    x = (levels / 255).requires_grad_()
    batch.inputs["pixel_values"] = loss_of.path(x).expand(3, -1, -1, -1)
    logits = vlm.forward(batch, logits_to_keep=5, grad=True)[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids).flatten())
    (expected_gradient,) = torch.autograd.grad(expected, x)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


def test_gradient_agrees_with_finite_differences(vlm):
    loss_of, levels = objective(vlm, 2)
    x = levels / 255
    _, gradient = loss_of.gradient(x, [0, 1])
    direction = gradient / gradient.norm()
    step = 1e-3
    ends = [loss_of.loss(loss_of.path(x + s * direction), [0, 1], 2) for s in (step, -step)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.05)


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
    examples = [replace(example, images=(START,)) for example in EXAMPLES[:2]]
    loss_of = Objective(vlm, path, examples, ["I", TARGETS[1]], 4)
    features = loss_of.features(path(levels / 255))
    total, count = loss_of.total([0, 1], features, grad=False)
    parts = [loss_of.total([row], features, grad=False) for row in (0, 1)]
    assert [part[1] for part in parts] == [1, 4]
    assert count == 5
    assert float(total) == pytest.approx(sum(float(part[0]) for part in parts), abs=1e-4)


# -- the attack ------------------------------------------------------------------------------------


def test_loss_falls_by_a_clear_margin_and_stays_low_after_saving(vlm, tmp_path):
    result = attack(vlm, replace(CONFIG, steps=40, batch=5))
    assert len(result.losses) == 40
    assert result.losses[-1] < result.losses[0] - 1.0
    assert result.loss < result.losses[0] - 1.0
    assert abs(result.rounding) < 1e-3  # steps are whole 8-bit levels
    assert result.image.mode == "RGB" and result.image.size == (28, 28)
    # The saved file does the same through the model's ordinary path.
    result.image.save(tmp_path / "attack.png")
    ids = [vlm.tokenizer(text, add_special_tokens=False)["input_ids"][:4] for text in TARGETS]
    examples = [replace(example, images=(tmp_path / "attack.png",)) for example in EXAMPLES]
    score = vlm.score(examples, [vlm.tokenizer.decode(row) for row in ids])
    assert -score.logprob.sum() / score.tokens.sum() == pytest.approx(result.loss, abs=1e-4)


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
    config = replace(CONFIG, step_size=1.0, steps=3)
    result = universal_image(vlm, EXAMPLES, TARGETS, white, config)
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


# -- through a defence -----------------------------------------------------------------------------


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


def test_the_attack_adapts_to_an_edit(vlm):
    halve = {
        Site(1, "layer_out"): lambda h, roles: h * (1 - 0.5 * (roles == Role.IMAGE)[..., None])
    }
    with edit(vlm, halve):
        adapted = attack(vlm)
    assert adapted.image.tobytes() != attack(vlm).image.tobytes()


# -- resuming --------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [3, 7])
def test_interrupted_and_resumed_is_the_same_image(vlm, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(pgd, "SAVE_EVERY", 5)
    config = replace(CONFIG, momentum=0.9)
    whole = attack(vlm, config)

    def stop(step, loss):
        if step == stop_at:
            raise Stop

    file = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        attack(vlm, config, progress=stop, checkpoint=file)
    steps = []
    resumed = attack(vlm, config, progress=lambda step, loss: steps.append(step), checkpoint=file)
    assert steps == list(range(stop_at + 1, config.steps + 1))
    assert resumed.losses == whole.losses
    assert resumed.loss == whole.loss
    assert resumed.image.tobytes() == whole.image.tobytes()


def test_killed_between_checkpoints_goes_on_from_the_last(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(pgd, "SAVE_EVERY", 5)
    file, copy = tmp_path / "state.safetensors", tmp_path / "killed.safetensors"

    def keep(step, loss):
        if step == 8:
            copy.write_bytes(file.read_bytes())

    whole = attack(vlm, progress=keep, checkpoint=file)
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


def test_a_checkpoint_of_another_attack_is_refused(vlm, tmp_path):
    file = tmp_path / "state.safetensors"
    attack(vlm, replace(CONFIG, steps=1), checkpoint=file)
    with pytest.raises(UsageError, match="another attack"):
        attack(vlm, replace(CONFIG, seed=5), checkpoint=file)
    with pytest.raises(UsageError, match="another attack"):
        universal_image(vlm, EXAMPLES, TARGETS[::-1], START, CONFIG, checkpoint=file)
    with pytest.raises(UsageError, match="another attack"):
        universal_image(vlm, EXAMPLES, TARGETS, picture(4), CONFIG, checkpoint=file)


def test_a_checkpoint_of_another_template_or_preprocessing_is_refused(vlm, tmp_path, monkeypatch):
    file = tmp_path / "state.safetensors"
    attack(vlm, replace(CONFIG, steps=1), checkpoint=file)
    with monkeypatch.context() as changed:
        changed.setattr(vlm.processor, "chat_template", vlm.processor.chat_template + "!")
        with pytest.raises(UsageError, match="another attack"):
            attack(vlm, CONFIG, checkpoint=file)
    pictures = vlm.processor.image_processor
    with monkeypatch.context() as changed:
        changed.setattr(pictures, "image_mean", [0.25, 0.25, 0.25])
        with pytest.raises(UsageError, match="another attack"):
            attack(vlm, CONFIG, checkpoint=file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_checkpoint_that_is_a_named_pipe_is_refused(vlm, tmp_path):
    os.mkfifo(tmp_path / "state.safetensors")
    with pytest.raises(ArtefactError, match="named pipe"):
        attack(vlm, CONFIG, checkpoint=tmp_path / "state.safetensors")


def test_a_damaged_checkpoint_is_refused(vlm, tmp_path):
    file = tmp_path / "state.safetensors"
    attack(vlm, replace(CONFIG, steps=1), checkpoint=file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ArtefactError, match="delete it"):
        attack(vlm, checkpoint=file)


def test_an_unwritable_checkpoint_is_one_sentence(vlm, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Could not write"):
        attack(vlm, replace(CONFIG, steps=1), checkpoint=tmp_path / "file" / "state.safetensors")


# -- the model afterwards --------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(vlm, fails):
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.001},
        {"epsilon": float("nan")},
        {"epsilon": 32},
        {"steps": 0},
        {"step_size": 0},
        {"step_size": float("nan")},
        {"batch": 0},
        {"target_tokens": 0},
        {"momentum": -0.1},
        {"seed": -1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_requests_and_targets_have_to_fit(vlm):
    with pytest.raises(UsageError, match="at least one request"):
        universal_image(vlm, [], [], START, CONFIG)
    with pytest.raises(UsageError, match="5 requests need as many targets, got 4"):
        universal_image(vlm, EXAMPLES, TARGETS[:4], START, CONFIG)
    with pytest.raises(UsageError, match=r"'g1'.*no tokens"):
        universal_image(vlm, EXAMPLES[:2], ["Sure", ""], START, CONFIG)


def test_a_processor_that_makes_patches_is_refused():
    model, processor = tiny_qwen2_5_vl()
    with pytest.raises(ModelError, match="StubProcessor can't be differentiated through"):
        attack(VLM(model, processor))


def test_a_processor_that_does_more_than_normalise_is_refused():
    class Inverting(SiglipImageProcessorPil):
        def __call__(self, *args, **kwargs):
            made = super().__call__(*args, **kwargs)
            made["pixel_values"] = -made["pixel_values"]
            return made

    model, processor = tiny_llava()
    processor.image_processor = Inverting(size={"height": 28, "width": 28})
    with pytest.raises(ModelError, match="does more than resize once"):
        attack(VLM(model, processor))


def test_a_processor_that_makes_several_crops_is_refused():
    class Cropping(SiglipImageProcessorPil):
        def __call__(self, *args, **kwargs):
            made = super().__call__(*args, **kwargs)
            made["pixel_values"] = np.stack([made["pixel_values"]] * 2, axis=1)
            return made

    vlm = tiny_vlm()
    vlm.processor.image_processor = Cropping(size={"height": 28, "width": 28})
    with pytest.raises(ModelError, match=r"one image becomes \(1, 2, 3, 28, 28\)"):
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
