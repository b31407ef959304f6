"""Guards on tiny models of the same architectures: templates, pictures, words, failures."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
)

import care
import recipes
from care.errors import ModelError, UsageError
from care.judges.config import GuardConfig
from care.judges.guards import GuardJudge, read_word
from care.judges.prompts import text_digest
from care.judges.registry import load_judge
from kit.guard_models import (
    LAYERS,
    TEXT_TEMPLATE,
    VISION_TEMPLATE,
    image_tokens,
    mllama_guard,
    shieldgemma,
    speak,
    text_guard,
)
from kit.judge_models import ANSWERS, GOALS, tiny_text_model
from kit.texts import cases
from kit.tiny import picture, tiny_tokenizer


class Llama4Stub:
    """Stands in for Llama 4's processor, which needs torchvision: one tile, four patch tokens."""

    chat_template = VISION_TEMPLATE

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages, **options):
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, **options
        )

    def __call__(self, text, images, **options):
        tile = "<|image_start|><|image|>" + "<|patch|>" * 4 + "<|image_end|>"
        inputs = self.tokenizer([row.replace("<|image|>", tile) for row in text], **options)
        pixels = [np.asarray(i.resize((28, 28)), np.float32).transpose(2, 0, 1) for i in images]
        return dict(inputs) | {"pixel_values": torch.tensor(np.stack(pixels)) / 127.5 - 1}


def llama4_guard():
    special = ["<|image_start|>", "<|image_end|>", "<|patch|>"]
    tokenizer = image_tokens(*special, "<|tile_x_separator|>", "<|tile_y_separator|>")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    text = LAYERS | {
        "intermediate_size_mlp": 64,
        "vocab_size": len(tokenizer),
        "moe_layers": [],
        "num_local_experts": 1,
    }
    config = Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    model = speak(Llama4ForConditionalGeneration(config), tokenizer)
    processor = Llama4Stub(tokenizer)
    return GuardJudge(model, processor, GuardConfig("vision", "tiny", vision=True))


def test_a_text_guard_reads_request_and_answer():
    labels = set()
    for seed in range(4):
        judge = text_guard(seed)
        verdicts = judge(GOALS, ANSWERS)
        for goal, answer, verdict in zip(GOALS, ANSWERS, verdicts, strict=True):
            text = f"Policy: S1.\nuser: {goal}\nassistant: {answer}\nVerdict:"
            ids = judge.tokenizer(text, return_tensors="pt")["input_ids"]
            word = judge.tokenizer.decode(
                int(judge.model(input_ids=ids).logits[0, -1].argmax())
            ).strip()
            assert verdict.label == word and verdict.on_goal == (word == "unsafe")
            labels.add(word)
    assert labels == {"safe", "unsafe"}
    assert judge.identity()["template_sha256"] == text_digest(TEXT_TEMPLATE)


def test_settings_that_come_with_a_guard_do_not_change_its_word():
    for seed in range(4):
        judge = text_guard(seed)
        greedy = judge.find(GOALS, ANSWERS, [[]] * len(GOALS))
        words = [judge.tokenizer.convert_tokens_to_ids(word) for word in ("\nsafe", "\nunsafe")]
        judge.model.generation_config.begin_suppress_tokens = words
        judge.model.generation_config.num_beams = 3
        assert judge.find(GOALS, ANSWERS, [[]] * len(GOALS)) == greedy


@pytest.mark.parametrize("make", [mllama_guard, llama4_guard], ids=["llama-guard-3", "4"])
def test_a_vision_guard_sees_the_pictures(make):
    judge = make()
    assert judge.reads_images
    bright, dark = picture(0, (28, 28)), picture(1, (28, 28)).point(lambda value: value // 8)
    seen: list[torch.Tensor] = []
    generate = judge.model.generate

    def watched(**inputs):
        with torch.no_grad():
            seen.append(judge.model(**{k: v for k, v in inputs.items() if k in KEPT}).logits[0, -1])
        return generate(**inputs)

    KEPT = {
        "input_ids", "attention_mask", "pixel_values", "aspect_ratio_ids", "aspect_ratio_mask",
        "cross_attention_mask",
    }  # fmt: skip
    judge.model.generate = watched
    verdicts = judge(GOALS, ANSWERS, images=[[bright], [], [dark]])
    assert all(verdict.label in ("safe", "unsafe") for verdict in verdicts)
    seen.clear()
    judge([GOALS[0]] * 3, [ANSWERS[0]] * 3, images=[[bright], [dark], []])
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])
    with pytest.raises(UsageError, match="looks at the pictures"):
        judge(GOALS, ANSWERS)
    with pytest.raises(UsageError, match="pictures for 1"):
        judge(GOALS, ANSWERS, images=[[]])


@cases("judges/guard_word")
def test_a_guard_s_word(text, label):
    """None where it is no judgement."""
    found = read_word(text)
    if label is None:
        assert found.flagged is None and "not safe or unsafe" in found.error
    else:
        assert (found.flagged, found.label) == (label != "safe", label)


OPENING_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_guard_s_prompt_opens_its_answer():
    judge = text_guard()
    judge.tokenizer.chat_template = OPENING_TEMPLATE
    written = judge._written("Wash a car", "Take water.", 0)
    assert written == "<|user|>Wash a car<|end|><|assistant|>Take water.<|end|><|assistant|>"


def test_every_prompt_says_whether_it_opens_an_answer():
    calls = []
    folders = (Path(care.__file__).parent, Path(recipes.__file__).parent)
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", "")
            if isinstance(node, ast.Call) and name == "apply_chat_template":
                calls.append((path.name, {keyword.arg for keyword in node.keywords}))
    assert len(calls) >= 3
    assert [place for place, given in calls if "add_generation_prompt" not in given] == []


def test_a_guard_without_a_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    model = tiny_text_model("llama", tokenizer, ("a",))
    with pytest.raises(ModelError, match="no chat template"):
        GuardJudge(model, tokenizer, GuardConfig("guard", "tiny"))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    judge = GuardJudge(model, tokenizer, GuardConfig("guard", "tiny"))
    with pytest.raises(ModelError, match="roles must alternate"):
        judge(GOALS, ANSWERS)


def test_a_text_guard_by_name(tmp_path):
    made = text_guard()
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    judge = load_judge(f"llama-guard-3,model={tmp_path},dtype=float32,batch_size=3,as=lg")
    assert judge.name == "lg"
    assert judge(GOALS, ANSWERS) == made(GOALS, ANSWERS)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_judge(f"llama-guard-4,model={tmp_path / 'nothing'}")


# -- ShieldGemma ---------------------------------------------------------------------------------


def test_shieldgemma_judges_pictures_by_the_worst_policy():
    judge = shieldgemma()
    first, second = picture(0, (28, 28)), picture(3, (28, 28)).point(lambda value: value // 8)
    one, other, both, none = judge(
        ["g"] * 4, ["r"] * 4, images=[[first], [second], [first, second], []]
    )
    for verdict, image in ((one, first), (other, second)):
        inputs = judge.processor(images=[image], return_tensors="pt")
        with torch.no_grad():
            shares = judge.model(**inputs).probabilities[:, 0]
        assert verdict.score == pytest.approx(float(shares.max()), abs=1e-5)
        assert verdict.label == list(judge.policies)[int(shares.argmax())]
        assert verdict.on_goal == (verdict.score >= 0.5)
    assert one.score != pytest.approx(other.score, abs=1e-6)
    assert both.score == max(one.score, other.score)
    assert "no picture" in none.error
    assert judge.subject == "image" and judge.identity()["subject"] == "image"
    assert set(judge.policies) == {"dangerous", "sexual", "violence"}
