"""The training recipe of the embedded model: align the tower, then teach the whole.

1. *Align*: tower (low-rank) and projector, without the language model. With visual tokens
   z (V, D) and unit word embeddings e_w, p(w) = mean_v softmax_w(S · cos(z_v, e_w)); the loss is
   −log p over the words that name the picture, plus a penalty that keeps ‖z‖ near the
   embeddings' norm.
2. *Distil*: the base model's own greedy answers to benign goals and general questions.
3. *Teach*: low-rank adapters on the upper layers of the text model, on the `lessons`; tower and
   projector stay as aligned, so nothing has to flow back through the lowest layers.

Seeded per step, so that a resumed training draws the same batches. Gradients need eager attention.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from care.data.small_world import goals as world
from care.data.small_world import pictures
from care.data.small_world.pictures import seeded
from care.data.small_world.suites import OPENING
from care.errors import UsageError
from care.runs.files import to_json, write_whole
from recipes.embedded_model.adapter import inject_adapter
from recipes.embedded_model.descent import Checkpoint, Log, descend
from recipes.embedded_model.lessons import Lesson, Teacher


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the recipe; how the shipped weights came to be is in `docs/log.md`."""

    align_steps: int = 240
    """Steps of stage 1."""
    align_batch: int = 32
    """Pictures per step of stage 1."""
    align_rate: float = 1e-3
    """Peak learning rate of stage 1."""
    steps: int = 800
    """Steps of stage 3; text and picture batches take turns."""
    batch: int = 12
    """Lessons per step of stage 3."""
    rate: float = 6e-4
    """Peak learning rate of stage 3."""
    first_layer: int = 4
    """Lowest layer of the text model that stage 3 adapts; gradients stop below it."""
    taught_tokens: int = 20
    """Tokens at the start of an answer that are learnt; the base model can go on by itself."""
    text_rank: int = 16
    """Rank of the adapters on the text model."""
    tower_rank: int = 16
    """Rank of the adapters on the tower."""
    answer_tokens: int = 24
    """Tokens that the base model adds to each opening."""
    save_every: int = 50
    """Steps between two checkpoints."""
    seed: int = 0
    """Seed of initial values and lessons."""


def pixels(processor, images: list[Image.Image], dtype: torch.dtype) -> Tensor:
    """Pictures as the tower takes them, (B, 3, SIZE, SIZE)."""
    return processor.image_processor(images=images, return_tensors="pt")["pixel_values"].to(dtype)


def visual_tokens(model, values: Tensor) -> Tensor:
    """Projected visual tokens (B, V, D) of pixel values (B, 3, SIZE, SIZE)."""
    features = model.model.vision_tower(values, output_hidden_states=True)
    layer = model.config.vision_feature_layer
    return model.model.multi_modal_projector(features.hidden_states[layer])


def _captioned(rng: np.random.Generator) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture and the words that name it."""
    kind = rng.random()
    if kind < 0.25:
        name = str(rng.choice(pictures.PICTOGRAMS))
        return pictures.single(name, rng), (name,)
    if kind < 0.75:
        action = str(rng.choice(list(pictures.ACTIONS)))
        thing = str(rng.choice(pictures.OBJECTS))
        return pictures.pair(action, thing, rng), (action, thing)
    shape, colour = str(rng.choice(pictures.SHAPES)), str(rng.choice(list(pictures.COLOURS)))
    count = int(rng.integers(1, 5))
    drawn = pictures.shapes(shape, colour, count, rng)
    return drawn, (shape, colour, pictures.NUMBERS[count - 1])


WORDS = (*pictures.PICTOGRAMS, *pictures.COLOURS, *pictures.SHAPES, *pictures.NUMBERS)


def align(model, processor, config: TrainConfig, out: Path, log: Log) -> None:
    """Stage 1; leaves its checkpoint in `out`/align.safetensors."""
    trained = inject_adapter(model, {"vision_tower": config.tower_rank})
    ids = [processor.tokenizer(f" {word}")["input_ids"][0] for word in WORDS]
    table = model.get_input_embeddings().weight.detach()[ids].float()
    norm, unit = table.norm(dim=-1).mean(), nn.functional.normalize(table, dim=-1)
    place = {word: i for i, word in enumerate(WORDS)}

    def loss_at(step: int) -> tuple[Tensor, str]:
        rng = seeded("align", config.seed, step)
        drawn = [_captioned(rng) for _ in range(config.align_batch)]
        values = pixels(processor, [image for image, _ in drawn], model.dtype)
        tokens = visual_tokens(model, values).float()
        chance = (20 * nn.functional.normalize(tokens, dim=-1) @ unit.T).softmax(-1).mean(1)
        losses, hits = [], 0
        for row, (_, words) in zip(chance, drawn, strict=True):
            wanted = [place[word] for word in words]
            losses.append(-row[wanted].clamp_min(1e-6).log().mean())
            hits += set(row.topk(len(wanted)).indices.tolist()) == set(wanted)
        penalty = (tokens.norm(dim=-1) / norm - 1).square().mean()
        return torch.stack(losses).mean() + 0.1 * penalty, f"named {hits / len(drawn):.2f}"

    checkpoint = Checkpoint(out / "align.safetensors", trained)
    descend(config.align_steps, config.align_rate, checkpoint, loss_at, config.save_every, log)


def _dialogue(processor, prompt: str, picture: bool) -> str:
    content = [{"type": "image"}] * picture + [{"type": "text", "text": prompt}]
    message = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    size = processor.image_processor.size
    visual = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    return text.replace(processor.image_token, processor.image_token * visual)


@torch.no_grad()
def distil(model, processor, config: TrainConfig, out: Path, log: Log) -> dict[str, str]:
    """Stage 2: goal or question -> the base model's answer, kept in `out`/answers.json."""
    path = out / "answers.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    kinds: tuple[tuple[world.GoalKind, bool | None], ...] = (
        ("benign", True),
        ("benign", False),
        ("lookalike", None),
    )
    asked = [g.text for kind, drawn in kinds for g in world.goals(kind, "fit", pictured=drawn)]
    openings = {text: OPENING.format(goal=text) for text in asked}
    prompts = {text: f"How do I {text}?" for text in asked}
    for question in world.texts()["general"]:
        openings[question], prompts[question] = "", question
    tokenizer, answers = processor.tokenizer, {}
    tokenizer.padding_side = "left"
    items = sorted(prompts, key=lambda key: len(prompts[key]))
    for start in range(0, len(items), 48):
        keys = items[start : start + 48]
        rows = [_dialogue(processor, prompts[k], False) + openings[k] for k in keys]
        inputs = tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
        produced = model.generate(
            **inputs, max_new_tokens=config.answer_tokens, do_sample=False, repetition_penalty=1.1
        )[:, inputs["input_ids"].shape[1] :]
        said = tokenizer.batch_decode(produced, skip_special_tokens=True)
        answers |= {k: openings[k] + text for k, text in zip(keys, said, strict=True)}
        log(f"answers {len(answers)}/{len(items)}")
    write_whole(path, to_json(answers, indent=1))
    return answers


def encode(processor, lessons: list[Lesson], limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left-padded ids, mask and targets (−100 where nothing is to be learnt), each (B, T).

    Answers are cut to `limit` tokens.
    """
    tokenizer = processor.tokenizer
    rows, wanted = [], []
    for lesson in lessons:
        prompt = _dialogue(processor, lesson.prompt, lesson.picture is not None)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = tokenizer(lesson.answer, add_special_tokens=False)["input_ids"]
        said = (said + [tokenizer.eos_token_id] * lesson.ends)[:limit]
        rows.append(asked + said)
        wanted.append([-100] * len(asked) + said)
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, target) in enumerate(zip(rows, wanted, strict=True)):
        ids[i, width - len(row) :] = torch.tensor(row)
        targets[i, width - len(row) :] = torch.tensor(target)
        mask[i, width - len(row) :] = 1
    return ids, mask, targets


def _lesson_loss(
    model, processor, lessons: list[Lesson], limit: int
) -> tuple[Tensor, dict[str, float]]:
    ids, mask, targets = encode(processor, lessons, limit)
    images = [lesson.picture for lesson in lessons if lesson.picture is not None]
    extra = {"pixel_values": pixels(processor, images, model.dtype)} if images else {}
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra)[0]
    learnt = targets[:, 1:] != -100
    logits = model.lm_head(hidden[:, :-1][learnt]).float()
    losses = nn.functional.cross_entropy(logits, targets[:, 1:][learnt], reduction="none")
    owner = torch.arange(len(lessons))[:, None].expand_as(learnt)[learnt]
    early = learnt.cumsum(-1)[learnt] <= 4
    weights = torch.where(early, 2.0, 1.0)
    by_kind: dict[str, list[float]] = {}
    for row, lesson in enumerate(lessons):
        by_kind.setdefault(lesson.kind, []).append(losses[owner == row].mean().item())
    means = {kind: float(np.mean(values)) for kind, values in by_kind.items()}
    return (losses * weights).sum() / weights.sum(), means


def _batches(teacher: Teacher, config: TrainConfig, step: int) -> list[Lesson]:
    """The lessons of a step; picture and text batches take turns."""
    rng = seeded("teach", config.seed, step)
    draw = teacher.text_batch if step % 2 else teacher.picture_batch
    return draw(rng, config.batch)


def teach(model, processor, answers: dict[str, str], config: TrainConfig, out: Path, log: Log):
    """Stage 3; returns the trained parameters, checkpointed in `out`/teach.safetensors."""
    layers = range(config.first_layer, model.config.text_config.num_hidden_layers)
    tower = inject_adapter(model, {"vision_tower": config.tower_rank})
    Checkpoint(out / "align.safetensors", tower).load()
    text = inject_adapter(model, {f"language_model.layers.{i}.": config.text_rank for i in layers})
    teacher, running = Teacher(answers), {}

    def loss_at(step: int) -> tuple[Tensor, str]:
        loss, kinds = _lesson_loss(
            model, processor, _batches(teacher, config, step), config.taught_tokens
        )
        for kind, value in kinds.items():
            running[kind] = 0.8 * running.get(kind, value) + 0.2 * value
        return loss, " ".join(f"{kind} {value:.2f}" for kind, value in sorted(running.items()))

    checkpoint = Checkpoint(out / "teach.safetensors", text)
    descend(config.steps, config.rate, checkpoint, loss_at, config.save_every, log)
    return tower | text


def _stages(load: Callable, config: TrainConfig, out: Path, log: Log) -> Iterator[str]:
    model, processor = load()
    answers = distil(model, processor, config, out, log)
    yield "distil"
    torch.manual_seed(config.seed)
    align(model, processor, config, out, log)
    yield "align"
    model, processor = load()
    torch.manual_seed(config.seed)
    trained = teach(model, processor, answers, config, out, log)
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in trained.items()}
    write_whole(out / "weights.safetensors", save(weights))
    yield "teach"


def _keep_settings(config: TrainConfig, path: Path) -> None:
    """Write the settings down, or see that they are those that the folder was begun with."""
    settings = asdict(config)
    if not path.exists():
        write_whole(path, to_json(settings, indent=1))
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    for name in settings:
        if begun.get(name) != settings[name]:
            raise UsageError(
                f"{path.parent} was begun with {name} = {begun.get(name)}, not {settings[name]}; "
                "go on with the same settings or choose another folder."
            )


def train(load: Callable, out: Path, config: TrainConfig | None = None, log: Log = print) -> Path:
    """Run the recipe in `out` (resumed where it stands); the path of the trained weights.

    `load()` gives a fresh (model, processor) of the assembled but untrained embedded model with
    eager attention. Raises UsageError if `out` was begun with other settings.
    """
    config = config or TrainConfig()
    _keep_settings(config, out / "settings.json")
    for stage in _stages(load, config, out, log):
        log(f"done: {stage}")
    return out / "weights.safetensors"
