"""Identity: a model is told by its files, its commit, or what it holds in memory."""

import pytest
import torch
from huggingface_hub.errors import HFValidationError

from care.errors import UsageError
from care.models.identity import load_pinned, model_facts, model_identity
from care.models.vlm import VLM
from care.runs.run import Run
from kit import tiny
from kit.refusals import refused


@pytest.fixture
def folder(tmp_path):
    """Files of a model, and others beside them."""
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "more/code.py",
                 "README.md", ".cache/config.json"):  # fmt: skip
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("file", "tells"),
    [("config.json", True), ("model.safetensors", True), ("more/code.py", True),
     ("pytorch_model.bin", False), ("README.md", False), (".cache/config.json", False)],
)  # fmt: skip
def test_a_folder_is_told_by_the_files_that_decide_answers(folder, file, tells):
    before = model_identity(str(folder))
    (folder / file).write_text("other")
    after = model_identity(str(folder))
    assert before["of"] == after["of"] == "files" and (before != after) is tells


def test_old_weights_tell_where_there_are_no_others(folder):
    (folder / "model.safetensors").unlink()
    before = model_identity(str(folder))
    (folder / "pytorch_model.bin").write_text("other")
    assert model_identity(str(folder)) != before


def test_a_model_in_memory_is_told_by_its_parameters(monkeypatch):
    def refuse(*_, **__):
        raise HFValidationError("no name")

    first = model_identity(None, tiny.tiny_vlm())
    assert first["of"] == "parameters" and first == model_identity(None, tiny.tiny_vlm())
    assert first != model_identity(None, tiny.tiny_vlm(1))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", refuse)
    assert first == model_identity("no name/of/the hub", tiny.tiny_vlm())
    aside = tiny.tiny_vlm()
    aside.model.lm_head.to("meta")
    assert model_identity(None, aside)["digest"] is model_identity(None, None)["digest"] is None


def test_a_model_of_the_hub_is_told_by_the_commit_that_was_loaded(monkeypatch):
    asked = []

    def cached(source, file, revision):
        asked.append((source, file, revision))
        return f"/cache/snapshots/abc123/{file}"

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert model_identity("some/model", tiny.tiny_vlm()) == {"of": "commit", "digest": "abc123"}
    assert asked == [("some/model", "config.json", "main")]


def test_a_run_is_held_to_its_model(folder, tmp_path):
    for place, source, other in (("a", None, lambda: tiny.tiny_vlm(1)), ("b", str(folder), None)):
        with Run(tmp_path / place) as run:
            assert isinstance(load_pinned(run, source, tiny.tiny_vlm), VLM)
            load_pinned(run, source, tiny.tiny_vlm)
            (folder / "config.json").write_text(place)
            with refused(UsageError, "model"):
                load_pinned(run, source, other or pytest.fail)


def test_what_a_repair_states_of_its_model():
    facts = model_facts(tiny.tiny_vlm())
    assert (facts["layers"], facts["width"], facts["name"]) == (4, 32, "tiny-llava")
    model, processor = tiny.tiny_llava()
    half = model_facts(VLM(model.to(torch.bfloat16), processor, "tiny-llava"))
    assert half == facts  # how it was loaded doesn't matter
    processor.chat_template += "!"
    other = model_facts(VLM(model, processor, "tiny-llava"))
    assert {name for name in facts if facts[name] != other[name]} == {"chat_template_sha256"}
