"""Artefacts: what is written comes back bit for bit; whatever else is found is refused."""

import json
import pickle
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care.defenses.artefact import load, save
from care.defenses.artefact_card import card
from care.defenses.repair.channel import Channel, Fusion
from care.defenses.repair.gate import FourierFeatures
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError
from care.models.identity import model_facts
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny
from kit.artefacts import FACTS, NUMBERS, folder, made, subspace  # noqa: F401
from kit.repairs import a_gate

few = settings(max_examples=30, deadline=None)


def same(first, second):
    """Whether two repairs agree in every bit and setting."""
    assert (first.name, first.fusion, first.manifest) == (
        second.name,
        second.fusion,
        second.manifest,
    )
    for ours, theirs in zip(first.channels, second.channels, strict=True):
        a, b = vars(ours).copy(), vars(theirs).copy()
        for part in ("subspace", "gate", "gate.features"):
            a |= {f"{part}.{key}": value for key, value in vars_of(a.pop(part, None)).items()}
            b |= {f"{part}.{key}": value for key, value in vars_of(b.pop(part, None)).items()}
        arrays = [key for key, value in a.items() if isinstance(value, np.ndarray)]
        extra = ours.subspace.write is not None
        if ours.gate is not None:
            extra += 4 if ours.gate.features is None else 6
        assert len(arrays) == 3 + extra
        pairs = [(a.pop(key), b.pop(key)) for key in arrays]
        assert a == b
        for left, right in pairs:
            assert left.dtype == right.dtype and left.shape == right.shape
            assert left.tobytes() == right.tobytes()


def vars_of(part):
    return {"is": None} if part is None else vars(part)


# -- round trip ------------------------------------------------------------------------------------


def test_a_round_trip_is_bit_equal_and_repairs_alike(vlm, folder):
    repair, back = made(), Repair.load(folder, vlm)
    same(repair, back)
    batch = vlm.batch(tiny.mixed_examples(3))
    logits = []
    for one in (repair, back):
        with one.applied(vlm):
            logits.append(vlm.forward(batch))
    assert torch.equal(*logits)


def test_saving_again_gives_the_same_bytes(folder, tmp_path):
    again = Repair.load(str(folder)).save(tmp_path / "again")
    for name in (NUMBERS, FACTS, "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    save(load(again), again)  # in place
    same(load(again), made())


@given(
    width=st.integers(1, 40),
    data=st.data(),
    name=st.text(max_size=20),
    fusion=st.sampled_from(get_args(Fusion)),
    oblique=st.booleans(),
    strength=st.floats(0, 50),
    manifest=st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none()),
    scopes=st.lists(st.sampled_from(["image", "text", "response", "all"]), min_size=1, max_size=4),
)
@few
def test_any_repair_survives_a_round_trip(
    width, data, name, fusion, oblique, strength, manifest, scopes
):
    manifest.pop("model", None)
    rank = data.draw(st.integers(1, width))
    quantile = data.draw(st.none() | st.floats(0, 1e300))
    count = data.draw(st.integers(0, 4))
    shares = st.floats(0, 1) | st.sampled_from([0, 1])
    gate = None
    if count:
        families = data.draw(st.just([]) | st.lists(st.text(), min_size=count, max_size=count))
        opened = data.draw(st.dictionaries(st.text(max_size=5), shares))
        rest = {key: data.draw(st.none() | shares) for key in ("opened_benign", "quantile")}
        gate = a_gate(count, width=width, families=tuple(families), opened=opened, **rest)
        if data.draw(st.booleans()):
            rows = np.random.default_rng(0).standard_normal((9, width))
            gate = a_gate(count, width=count + 2, families=gate.families)
            gate = replace(gate, features=FourierFeatures.drawn(rows, count + 2))
    channel = Channel(
        Site(data.draw(st.integers(0, 99)), "ffn_out"),
        "image",
        tuple(scopes),
        replace(
            subspace(width, rank, null_quantile=quantile, condition=1e300),
            write=subspace(width, rank, seed=1).basis if oblique else None,
        ),
        strength,
        gate,
    )
    repair = Repair((channel, replace(channel, modality="text")), fusion, name, manifest)
    with tempfile.TemporaryDirectory() as scratch:
        same(load(save(repair, Path(scratch))), repair)


def test_the_folder_holds_three_files_and_nothing_is_unpickled(folder, monkeypatch):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", FACTS, NUMBERS]
    json.loads((folder / FACTS).read_text())

    def refuse(*args, **kwargs):
        raise AssertionError("an artefact was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load(folder)
    (folder / NUMBERS).write_bytes(pickle.dumps({"channels.0.basis": 1}))
    with pytest.raises(ArtefactError, match="digest"):
        load(folder)


def test_directions_in_float64_are_stored_in_float32(tmp_path):
    repair = made()
    channel = repair.channels[0]
    wide = replace(channel.subspace, basis=channel.subspace.basis.astype(np.float64))
    same(
        load(save(replace(repair, channels=(replace(channel, subspace=wide),)), tmp_path)),
        replace(repair, channels=(channel,)),
    )


# -- the model -------------------------------------------------------------------------------------


def of_model(vlm, folder, **changes):
    """An artefact fitted on `vlm`, with changes to what it says of it."""
    return save(made(manifest={"model": {**model_facts(vlm), **changes}}), folder)


def test_the_model_it_was_fitted_on_is_taken_without_a_warning(vlm, tmp_path):
    folder = of_model(vlm, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, vlm)
        load(folder, tiny.tiny_vlm())


def test_the_precision_of_a_model_is_no_other_configuration(vlm, tmp_path):
    model, processor = tiny.tiny_llava()
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    other = VLM(loaded, processor, vlm.name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(of_model(vlm, tmp_path / "repair"), other)


def test_another_model_class_is_refused(vlm, tmp_path):
    other = VLM(*tiny.tiny_gemma3(), "gemma")
    with pytest.raises(ArtefactError, match=r"class LlavaForConditional.*Gemma3"):
        load(of_model(vlm, tmp_path), other)
    load(tmp_path)  # without a model there is nothing to compare with


@pytest.mark.parametrize("change", [{"layers": 28}, {"width": 3584}], ids=str)
def test_another_architecture_is_refused(vlm, tmp_path, change):
    ((key, value),) = change.items()
    with pytest.raises(ArtefactError, match=f"{key} {value}.*fit a repair for this model"):
        load(of_model(vlm, tmp_path, **change), vlm)


def test_another_width_is_refused_even_if_nothing_is_said_of_the_model(vlm, tmp_path):
    folder = save(made(width=48), tmp_path)
    with pytest.raises(ArtefactError, match="width 48"):
        load(folder, vlm)


@pytest.mark.parametrize(
    ("key", "word"),
    [("revision", "revision"), ("config_sha256", "config"), ("chat_template_sha256", "template")],
)
def test_another_revision_of_the_model_warns(vlm, tmp_path, key, word):
    folder = of_model(vlm, tmp_path, **{key: "abc"})
    with pytest.warns(UserWarning, match=f"another .*{word}.*abc"):
        same(load(folder, vlm), load(folder))


# -- the card and the Hub --------------------------------------------------------------------------


def test_the_card_states_model_sites_and_figures_with_intervals():
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6}
    figures = {"name": "pgd-32", "metric": "ASR", "n": 60, "before": rate}
    evaluation = {"suites": [{**figures, "after": {"rate": 0.05, "low": 0.01, "high": 0.14}}]}
    repair = made(manifest={"model": {"name": "org/model"}, "evaluation": evaluation})
    text = card(repair)
    assert "base_model: org/model" in text
    assert "| 1.ffn_out | text | text, response | pgd-32, schöne Worte | 3 | 1 |" in text
    assert "| 0.layer_out | image | image | none | 2 | 1 |" in text
    gated = repair.channels[0]
    unnamed = replace(gated, gate=replace(gated.gate, families=()))
    assert "| text, response | 2 filters | 3 |" in card(replace(repair, channels=(unnamed,)))
    assert "| pgd-32 (ASR) | 60 | 0.50 [0.40, 0.60] | 0.05 [0.01, 0.14] |" in text
    for heading in ("Threat model", "Known failures"):
        assert heading in text
    assert "Not evaluated yet" in card(replace(repair, manifest={}))


def test_a_push_uploads_what_save_writes(monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, repo_id, folder_path, **options):
            same(load(folder_path), made())
            calls.append(options)
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    url = made().push_to_hub("me/repair", token="t", private=True, commit_message="first")
    assert url == "https://hub/commit/1"
    assert calls == [
        "t",
        ("me/repair", {"exist_ok": True, "private": True}),
        {"commit_message": "first"},
    ]
