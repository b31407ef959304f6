"""The model of a command: what is stored of it, what is taken where nothing is said, loading."""

import pytest

from care.errors import UsageError
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from kit.refusals import refusals
from kit.tiny import tiny_vlm


@pytest.mark.parametrize(("name", "batch", "length"), [(None, 64, 24), ("some/model", 16, 512)])
def test_what_is_taken_where_nothing_is_said(name, batch, length):
    spec = ModelSpec(name)
    assert (spec.batch(None), spec.answer_length(None)) == (batch, length)
    assert (spec.batch(3), spec.answer_length(5)) == (3, 5)
    assert spec.shown == (name or "embedded")


def test_tags_stand_in_a_manifest_only_where_there_are_any():
    assert "thoughts" not in ModelSpec("m").facts()
    assert ModelSpec("m", thoughts=("<a>…</a>",)).facts()["thoughts"] == ("<a>…</a>",)


def test_what_the_embedded_model_does_not_take_is_told():
    said = {"revision": "v1", "device_map": "auto"}
    with pytest.raises(UsageError, match="embedded model takes no device_map"):
        ModelSpec(**said)
    with pytest.raises(UsageError, match="embedded model takes no revision"):
        ModelSpec(revision="v1")
    assert ModelSpec("m", **said).device_map == "auto"


def test_a_model_is_loaded_as_it_is_said(monkeypatch):
    def loaded(name=None, **how):
        asked.append((name, how))
        return tiny_vlm()

    asked = []
    monkeypatch.setattr(VLM, "from_pretrained", loaded)
    monkeypatch.setattr(VLM, "embedded", loaded)
    vlm = ModelSpec("m", "float16", revision="v1", thoughts=("<a>…</a>",)).load()
    assert ("<a>", "</a>") in vlm.thought_tags
    assert ModelSpec(dtype="bfloat16").load().thought_tags == tiny_vlm().thought_tags
    how = {"dtype": "float16", "device_map": None, "revision": "v1"}
    how |= {"quantize": None, "attn_implementation": None, "trust_remote_code": False}
    assert asked == [("m", how), ("bfloat16", {})]


test_tags_have_two_ends = refusals(
    (UsageError, "OPEN…CLOSE", lambda: ModelSpec("m", thoughts=("<a>",)))
)
