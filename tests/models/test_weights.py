"""Models on the disk that aren't whole or are damaged: one sentence, for every file and loader."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlamaForCausalLM

from care.errors import CareError, MissingDependencyError, ModelError
from care.judges.registry import load_judge
from care.models.vlm import VLM
from care.models.weights import MOST_LAYERS, load_whole, loading
from kit import tiny
from kit.guard_models import mllama_guard, shieldgemma, text_guard

TEXT = "language_model.model.layers.{}.mlp.down_proj.weight"
"""Name in the files; the model calls it model.language_model.layers.…"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("sound")
    for part in tiny.tiny_llava():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(sound, tmp_path / "model")


def tensors(folder, change):
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def settings(folder, change, file="config.json"):
    found = json.loads((folder / file).read_text())
    change(found)
    (folder / file).write_text(json.dumps(found))


def refused(folder):
    with pytest.raises(ModelError) as caught:
        VLM.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- whole -----------------------------------------------------------------------------------------


def test_missing_tensors_are_named(folder):
    tensors(folder, lambda found: found.pop(TEXT.format(2)))
    said = refused(folder)
    assert said.startswith(f"The model {folder} isn't whole: 1 tensors are missing from its files")
    assert "layers.2.mlp.down_proj.weight" in said and "fetch it again" in said


def test_renamed_tensors_are_missing(folder):
    tensors(folder, lambda found: found.update(other=found.pop(TEXT.format(0))))
    assert "layers.0.mlp.down_proj.weight" in refused(folder)


def test_tensors_of_another_shape_are_named(folder):
    tensors(folder, lambda found: found.update({TEXT.format(1): torch.zeros(7, tiny.FFN)}))
    said = refused(folder)
    assert "1 tensors have another shape in its files than in its configuration" in said
    assert "layers.1.mlp.down_proj.weight is (7, 64) instead of (32, 64)" in said


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("more", [2, -1])
def test_a_configuration_with_other_layers_than_the_weights(folder, part, more):
    def change(config):
        config[part]["num_hidden_layers"] += more
        if part == "vision_config":
            config["vision_feature_layer"] = -1

    settings(folder, change)
    said = refused(folder)
    assert ("are missing" if more > 0 else "have no place in its configuration") in said
    assert " more)" in said


@pytest.mark.parametrize("has", [True, False])
def test_a_bias_that_only_one_of_them_has(folder, has):
    model, _ = tiny.tiny_llava()
    model.config.text_config.attention_bias = has
    type(model)(model.config).save_pretrained(folder)
    settings(folder, lambda config: config["text_config"].update(attention_bias=not has))
    said = refused(folder)
    assert ("no place in its configuration" if has else "are missing") in said
    assert "16 tensors" in said and "self_attn.k_proj.bias" in said


def test_what_is_left_over_otherwise_is_sound(sound, folder):
    """Buffers of older releases, a head for another task, another model's part."""

    def more(found):
        for layer in range(tiny.LAYERS):
            place = f"language_model.model.layers.{layer}.self_attn"
            found[f"{place}.rotary_emb.inv_freq"] = torch.ones(4)
            found[f"{place}.masked_bias"] = torch.ones(1)
        found["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(4)
        found["score.weight"] = torch.ones(2, 32)
        found["mtp.layers.0.weight"] = torch.ones(2)

    tensors(folder, more)
    examples = tiny.mixed_examples(2)
    wanted = VLM.from_pretrained(str(sound)).generate(examples, max_new_tokens=4)
    assert VLM.from_pretrained(str(folder)).generate(examples, max_new_tokens=4) == wanted


def test_tied_tensors_need_not_be_there(tmp_path):
    model = tiny.tiny_llama()
    config = model.config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    tied = load_whole(LlamaForCausalLM, tmp_path, "the model x")
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    tensors(tmp_path, lambda found: found.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match="The model x isn't whole: 2 tensors are missing"):
        load_whole(LlamaForCausalLM, tmp_path, "the model x")


def test_layers_beyond_counting_are_refused_before_they_are_built(folder):
    for number in (10**12, MOST_LAYERS + 1, -1, 1e308):
        settings(folder, lambda config, n=number: config["text_config"].update(num_hidden_layers=n))
        assert "num_hidden_layers" in refused(folder)


# -- damaged ---------------------------------------------------------------------------------------

DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "other bytes": lambda data: bytes(byte ^ 0x55 for byte in data[:64]) + data[64:],
    "not UTF-8": lambda data: b"\xff\xfe\x00" + data,
    "nested": lambda data: b"[" * 100_000,
    "a list": lambda data: b"[1]",
    "nothing": lambda data: b"null",
    "text": lambda data: b'"x"',
}
FILES = [
    "config.json", "generation_config.json", "model.safetensors", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_one_sentence(folder, file, damage):
    path = folder / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert str(folder) in refused(folder) or damage == "text"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 0),
        ("num_attention_heads", 10**12),
        ("num_key_value_heads", "x"),
        ("hidden_size", -1),
        ("hidden_size", 10**12),
        ("vocab_size", None),
        ("hidden_act", []),
        ("rms_norm_eps", {}),
        ("head_dim", 0),
        ("rope_parameters", 3),
    ],
)
def test_nonsense_in_a_configuration_is_one_sentence(folder, name, value):
    settings(folder, lambda config: config["text_config"].update({name: value}))
    assert str(folder) in refused(folder)


def test_nonsense_that_shows_when_the_model_runs(folder):
    settings(folder, lambda config: config.update(vision_feature_layer=99))
    assert "could not be loaded: its files are damaged or don't belong together" in refused(folder)


def test_no_end_token_that_is_none(folder):
    for value in ("x", {}, [1, "y"], 1.5):
        settings(
            folder, lambda made, v=value: made.update(eos_token_id=v), "generation_config.json"
        )
        assert "eos_token_id" in refused(folder)


def test_pickles_that_are_damaged(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "could not be loaded" in refused(folder)


# -- other loaders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (text_guard, "llama-guard-3"),
        (mllama_guard, "llama-guard-3-vision"),
        (shieldgemma, "shieldgemma"),
    ],
)
def test_judges_that_are_not_whole_or_damaged(make, name, tmp_path, monkeypatch):
    judge = make()
    judge.model.save_pretrained(tmp_path)
    judge.processor.save_pretrained(tmp_path)
    if name == "shieldgemma":  # the stub's image tokens aren't saved with it
        monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *a, **k: judge.processor)
    asked = f"{name},model={tmp_path},dtype=float32"
    assert load_judge(asked).name == name
    key = next(
        key
        for key in load_file(tmp_path / "model.safetensors")
        if "fc1" in key or "gate_proj" in key
    )
    tensors(tmp_path, lambda found: found.pop(key))
    with pytest.raises(
        ModelError, match=f"The judge {tmp_path} isn't whole: 1 tensors are missing"
    ):
        load_judge(asked)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=f"The judge {tmp_path} could not be loaded: .*Safetensor"):
        load_judge(asked)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ZeroDivisionError("division by zero"), ModelError, "fetch it again"),
        (RecursionError("deep"), ModelError, "RecursionError: deep"),
        (KeyError("a"), ModelError, "KeyError: 'a'"),
        (OSError("no such file\nat all."), ModelError, r"access rights \(no such file at all\)"),
        (MemoryError(), ModelError, "isn't enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), ModelError, "isn't enough memory"),
        (ImportError("Thing needs a library"), MissingDependencyError, "needs more: Thing needs"),
        (AttributeError("x" * 5000), ModelError, "…"),
    ],
)
def test_every_class_of_error_becomes_a_sentence(error, kind, said):
    with pytest.raises(kind, match=said) as caught, loading("the model x"):
        raise error
    assert len(str(caught.value)) < 600 and caught.value.__cause__ is error
    assert isinstance(caught.value, CareError)


def test_interrupts_and_own_errors_pass():
    own = ModelError("own")
    for error in (KeyboardInterrupt(), own):
        with pytest.raises(type(error)) as caught, loading("the model x"):
            raise error
        assert caught.value is error
