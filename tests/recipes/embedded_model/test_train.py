"""Adapters and the training recipe on a tiny model: exact folding, exact resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from care.data.small_world import goals as world
from care.data.small_world import pictures
from care.data.small_world.suites import OPENING
from care.errors import ArtefactError, StorageError, UsageError
from care.models.embedded.adapter import SCALE, merge_adapter
from kit.tiny import VISUAL, mixed_examples, tiny_llava
from recipes.embedded_model import descent, train
from recipes.embedded_model.adapter import PROJECTOR, inject_adapter
from recipes.embedded_model.descent import Checkpoint, descend, schedule
from recipes.embedded_model.lessons import Lesson

CONFIG = train.TrainConfig(
    align_steps=4,
    align_batch=3,
    steps=6,
    batch=4,
    first_layer=2,
    text_rank=2,
    tower_rank=2,
    answer_tokens=1,
    save_every=2,
)
RANKS = {"vision_tower": 3, "language_model.layers.2.": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order, whatever else the machine is doing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(line: str) -> None:
    """A log that nobody reads."""


def load(seed: int = 0):
    model, processor = tiny_llava(seed)
    model.set_attn_implementation("eager")
    return model, processor


@torch.no_grad()
def logits(model) -> Tensor:
    _, processor = tiny_llava()
    example = next(e for e in mixed_examples() if e.images)
    text = processor.apply_chat_template(example.messages(), add_generation_prompt=True)
    inputs = processor(text=text, images=example.load_images(), return_tensors="pt")
    return model(**inputs).logits


# --- adapters -------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing_and_trains_what_it_should() -> None:
    model, _ = load()
    before = logits(model)
    trained = inject_adapter(model, RANKS)
    assert torch.equal(logits(model), before)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in trained.values()
    }
    parts = {name.rpartition(".")[0] for name in trained}
    assert any("vision_tower" in name for name in parts)
    assert {"model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"} < parts
    text = {name for name in parts if "language_model" in name}
    assert text and all("layers.2." in name for name in text)
    ranks = {n: p.shape[0] for n, p in trained.items() if n.endswith("lora_A")}
    assert {r for n, r in ranks.items() if "language_model" in n} == {2}
    assert {r for n, r in ranks.items() if "vision_tower" in n} == {3}


def test_text_alone_leaves_the_projector_frozen() -> None:
    model, _ = load()
    trained = inject_adapter(model, {"language_model.layers.1.": 2})
    assert trained and all("language_model.layers.1." in name for name in trained)


def randomised(seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with an adapter that does something, and its tensors."""
    model, _ = load()
    generator = torch.Generator().manual_seed(seed)
    trained = inject_adapter(model, RANKS)
    for parameter in trained.values():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, {name: p.detach().clone() for name, p in trained.items()}


def test_an_adapter_saves_and_loads_to_identical_logits(tmp_path: Path) -> None:
    wrapped, tensors = randomised(1)
    save_file(tensors, tmp_path / "weights.safetensors")
    direct, again = load()[0], load()[0]
    untouched = logits(direct)
    merge_adapter(direct, tensors)
    merge_adapter(again, load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(logits(direct), logits(again))
    torch.testing.assert_close(logits(direct), logits(wrapped), rtol=1e-4, atol=1e-4)
    assert (logits(direct) - untouched).abs().max() > 0.1
    assert {type(m) for m in direct.modules()} == {type(m) for m in load()[0].modules()}


def test_folding_in_adds_the_product_in_closed_form() -> None:
    model, before = load()[0], load()[0]
    stem = "model.language_model.layers.2.mlp.up_proj"
    out, width = model.get_parameter(f"{stem}.weight").shape
    a, b = torch.randn(2, width), torch.randn(out, 2)
    merge_adapter(model, {f"{stem}.lora_B": b, f"{stem}.lora_A": a})
    wanted = before.get_parameter(f"{stem}.weight") + SCALE * b @ a
    torch.testing.assert_close(model.get_parameter(f"{stem}.weight"), wanted)
    for name, parameter in model.named_parameters():
        if name != f"{stem}.weight":
            assert torch.equal(parameter, before.get_parameter(name)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s: t.pop(f"{s}.lora_B"), "but not"),
        (lambda t, s: t.pop(f"{s}.lora_A"), "but not"),
        (lambda t, s: t.update({f"{s}.lora_A": torch.zeros(3, 32)}), "don't fit"),
        (lambda t, s: t.update({f"{s}.lora_B": torch.zeros(5, 2)}), "the model has"),
        (lambda t, s: t.update({"model.other.weight": torch.zeros(2)}), "lacks"),
        (
            lambda t, s: t.update({"model.multi_modal_projector.linear_1.bias": torch.zeros(2)}),
            "the model has",
        ),
    ],
)
def test_weights_of_another_model_are_refused(change: Callable, message: str) -> None:
    stem = "model.language_model.layers.2.self_attn.q_proj"
    tensors = {f"{stem}.lora_A": torch.zeros(2, 32), f"{stem}.lora_B": torch.zeros(32, 2)}
    merge_adapter(load()[0], tensors)
    change(tensors, stem)
    with pytest.raises(ArtefactError, match=message):
        merge_adapter(load()[0], tensors)


def test_masters_are_float32_in_a_bfloat16_model() -> None:
    model, _ = load()
    model = model.to(torch.bfloat16)
    trained = inject_adapter(model, RANKS)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    features = torch.randn(1, 4, 32, dtype=torch.bfloat16)
    assert model.model.multi_modal_projector(features).dtype == torch.bfloat16


# --- descent --------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    rates = [schedule(step, 400, 2.0) for step in range(400)]
    assert rates[0] == pytest.approx(2.0 / 40)
    assert rates[:36] == sorted(rates[:36]) and rates[45:] == sorted(rates[45:], reverse=True)
    assert max(rates) <= 2.0 and rates[-1] == pytest.approx(0.1, rel=1e-3)


def quadratic(seen: list[int], value: nn.Parameter) -> Callable[[int], tuple[Tensor, str]]:
    def loss_at(step: int) -> tuple[Tensor, str]:
        seen.append(step)
        return (value - 3.0 - step % 3).square().sum(), "note"

    return loss_at


def test_descent_finds_the_least_of_a_quadratic_and_reports(tmp_path: Path) -> None:
    value, lines = nn.Parameter(torch.zeros(2)), []
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {"v": value})
    descend(300, 0.3, checkpoint, quadratic([], value), 100, lines.append)
    torch.testing.assert_close(value.detach(), torch.full((2,), 4.0), rtol=0, atol=0.2)
    assert len(lines) == 30 and lines[-1].startswith("step 300/300 loss") and "note" in lines[-1]


def test_a_descent_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    path, seen = tmp_path / "c.safetensors", []
    value = nn.Parameter(torch.zeros(2))
    descend(7, 0.3, Checkpoint(path, {"v": value}), quadratic(seen, value), 3, quiet)
    whole = value.detach().clone()
    path.unlink()

    def killed(step: int) -> tuple[Tensor, str]:
        if step == 5:
            raise KeyboardInterrupt
        return quadratic([], value)(step)

    value = nn.Parameter(torch.zeros(2))
    with pytest.raises(KeyboardInterrupt):
        descend(7, 0.3, Checkpoint(path, {"v": value}), killed, 3, quiet)
    value, seen = nn.Parameter(torch.zeros(2)), []
    descend(7, 0.3, Checkpoint(path, {"v": value}), quadratic(seen, value), 3, quiet)
    assert seen == [3, 4, 5, 6]
    assert torch.equal(value, whole)
    seen.clear()
    descend(7, 0.3, Checkpoint(path, {"v": value}), quadratic(seen, value), 3, quiet)
    assert seen == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    value = nn.Parameter(torch.zeros(2))
    descend(1, 0.3, Checkpoint(tmp_path / "c", {"v": value}), quadratic([], value), 1, quiet)
    with pytest.raises(ArtefactError, match="lacks 'w'"):
        Checkpoint(tmp_path / "c", {"w": value}).load()


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    value = nn.Parameter(torch.zeros(2))
    with pytest.raises(StorageError, match="Could not write"):
        Checkpoint(tmp_path / "file" / "c", {"v": value}).save(torch.optim.AdamW([value]), 1)


# --- what is learnt -------------------------------------------------------------------------------


def lesson(answer: str, picture: bool = False, ends: bool = False) -> Lesson:
    drawn = pictures.single("dog", np.random.default_rng(0)) if picture else None
    return Lesson("kind", "Why is it so?", answer, ends, drawn)


def test_answers_are_targets_and_prompts_are_not() -> None:
    _, processor = load()
    tokenizer = processor.tokenizer
    taught = [lesson("I", ends=True), lesson("So it goes, on and on and on.")]
    ids, mask, targets = train.encode(processor, taught, 6)
    assert ids.shape == mask.shape == targets.shape
    for row, item in enumerate(taught):
        said = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        said = (said + [tokenizer.eos_token_id] * item.ends)[:6]
        learnt = targets[row] != -100
        assert targets[row][learnt].tolist() == said == ids[row, -len(said) :].tolist()
        assert learnt[-len(said) :].all()
        prompt = ids[row][(mask[row] == 1) & ~learnt]
        assert tokenizer.decode(prompt) == "<|user|>Why is it so?<|end|><|assistant|>"
        padding = mask[row] == 0
        assert (ids[row][padding] == tokenizer.pad_token_id).all()
        assert padding.tolist() == sorted(padding.tolist(), reverse=True)  # on the left
    assert (mask == 0).any()


def test_a_picture_has_as_many_tokens_as_the_tower_gives() -> None:
    model, processor = load()
    ids, _, _ = train.encode(processor, [lesson("Because.", picture=True)], 6)
    image = int(processor.tokenizer.convert_tokens_to_ids("<image>"))
    assert (ids == image).sum() == VISUAL
    values = train.pixels(processor, [lesson("", picture=True).picture], model.dtype)
    assert train.visual_tokens(model, values).shape[1] == VISUAL


@pytest.mark.parametrize("picture", [False, True])
def test_the_loss_is_the_weighted_mean_of_each_answer_by_itself(picture: bool) -> None:
    model, processor = load()
    taught = [lesson("To wash a car, you'll need", picture), lesson("No.", picture, ends=True)]
    with torch.no_grad():
        loss, kinds = train._lesson_loss(model, processor, taught, 20)
        total = weight = 0.0
        for item in taught:
            ids, mask, targets = train.encode(processor, [item], 20)
            assert mask.all()  # alone, nothing is padded
            images = [item.picture] if item.picture else []
            extra = {"pixel_values": train.pixels(processor, images, model.dtype)} if images else {}
            found = model(input_ids=ids, **extra).logits[0].log_softmax(-1)
            places = (targets[0] != -100).nonzero().flatten().tolist()
            for number, place in enumerate(places):
                share = 2.0 if number < 4 else 1.0  # the first words decide
                total -= share * found[place - 1, ids[0, place]].item()
                weight += share
    assert loss.item() == pytest.approx(total / weight, rel=1e-4)
    assert kinds.keys() == {"kind"}


def test_captions_name_what_is_drawn(monkeypatch) -> None:
    drawn = []
    for name in ("single", "pair", "shapes"):
        real = getattr(pictures, name)

        def note(*given, real=real):
            drawn.append([part for part in given if isinstance(part, (str, int))])
            return real(*given)

        monkeypatch.setattr(pictures, name, note)
    kinds = set()
    for seed in range(80):
        _, said = train._captioned(np.random.default_rng(seed))
        shown = [pictures.NUMBERS[p - 1] if isinstance(p, int) else p for p in drawn[-1]]
        assert list(said) == shown and set(said) <= set(train.WORDS)
        kinds.add(len(said))
    assert kinds == {1, 2, 3}


# --- the whole recipe -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    assert train.train(load, out, CONFIG, quiet) == out / "weights.safetensors"
    return out


def test_everything_benign_of_fit_has_an_answer_and_nothing_else(uninterrupted: Path) -> None:
    answers = json.loads((uninterrupted / "answers.json").read_text(encoding="utf-8"))
    wanted = [g for g in world.all_goals() if g.kind != "malicious" and g.split == "fit"]
    assert set(answers) == {g.text for g in wanted} | set(world.texts()["general"])
    for goal in wanted:
        assert answers[goal.text].startswith(OPENING.format(goal=goal.text))


def test_every_stage_moves_its_own_weights(uninterrupted: Path) -> None:
    weights = load_file(uninterrupted / "weights.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    for name, tensor in weights.items():
        if name.endswith("lora_B"):
            assert tensor.abs().max() > 0, name
        if "language_model" in name:
            assert "layers.2." in name or "layers.3." in name  # from CONFIG.first_layer on
    model, before = load()[0], logits(load()[0])
    merge_adapter(model, weights)
    assert not torch.allclose(logits(model), before)


def killed_at(monkeypatch, steps: int, step: int) -> None:
    """Interrupt the descent of `steps` steps before its step number `step`."""

    def interrupted(now: int, of: int, peak: float) -> float:
        if (now, of) == (step, steps):
            raise KeyboardInterrupt
        return schedule(now, of, peak)

    monkeypatch.setattr(descent, "schedule", interrupted)


def test_a_killed_training_goes_on_to_the_same_weights(
    uninterrupted: Path, tmp_path: Path, monkeypatch
) -> None:
    for steps, step in ((CONFIG.align_steps, 3), (CONFIG.steps, 1), (CONFIG.steps, 5)):
        killed_at(monkeypatch, steps, step)
        with pytest.raises(KeyboardInterrupt):
            train.train(load, tmp_path, CONFIG, quiet)
        assert not (tmp_path / "weights.safetensors").exists()
    monkeypatch.setattr(descent, "schedule", schedule)
    train.train(load, tmp_path, CONFIG, quiet)
    for name in ("align", "teach", "weights"):
        whole = load_file(uninterrupted / f"{name}.safetensors")
        resumed = load_file(tmp_path / f"{name}.safetensors")
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name


def test_another_seed_gives_other_weights(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_bytes((uninterrupted / "answers.json").read_bytes())
    train.train(load, tmp_path, replace(CONFIG, seed=1), quiet)
    first, second = (load_file(f / "weights.safetensors") for f in (uninterrupted, tmp_path))
    name = next(key for key in first if key.endswith("lora_A"))
    assert not torch.equal(first[name], second[name])


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 5}, {"text_rank": 4}])
def test_other_settings_are_not_mixed_in(uninterrupted: Path, change: dict) -> None:
    before = (uninterrupted / "weights.safetensors").read_bytes()
    with pytest.raises(UsageError, match=f"{next(iter(change))} = .*another folder"):
        train.train(load, uninterrupted, replace(CONFIG, **change), quiet)
    assert (uninterrupted / "weights.safetensors").read_bytes() == before


def test_the_shipped_weights_are_an_adapter_of_the_recipe() -> None:
    from care.models.embedded.cache import WEIGHTS

    config, weights = train.TrainConfig(), load_file(WEIGHTS)
    ranks = {name: t.shape[0] for name, t in weights.items() if name.endswith("lora_A")}
    layers = {int(n.split(".")[3]) for n in ranks if "language_model" in n}
    assert layers == set(range(config.first_layer, 30))
    assert {r for n, r in ranks.items() if "language_model" in n} == {config.text_rank}
    assert {r for n, r in ranks.items() if "vision_tower" in n} == {config.tower_rank}
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert PROJECTOR in " ".join(weights)
