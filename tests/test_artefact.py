"""Artefacts: what is written comes back bit for bit; whatever else is found is refused."""

import hashlib
import json
import pickle
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import tiny
from care.anatomy import Site
from care.artefact import FORMAT, card, load, model_facts, save
from care.errors import ArtefactError, StorageError, UsageError
from care.repair import Channel, Repair
from care.subspace import Subspace
from care.vlm import VLM

NUMBERS, FACTS = "repair.safetensors", "repair.json"
few = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


def subspace(width=tiny.WIDTH, rank=3, seed=0, **facts):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((width, rank)))
    return Subspace(
        basis=basis.astype(np.float32),
        mean=rng.standard_normal(width).astype(np.float32),
        eigenvalues=np.sort(rng.random(rank + 2))[::-1] / 3,
        **facts,
    )


def made(width=tiny.WIDTH, manifest=None, strength=1.0):
    """A repair with an oblique projection and a clip."""
    facts = {"null_quantile": 1 / 3, "significant": 2, "shrinkage": 0.1, "condition": 1e9}
    projection = Channel(
        Site(1, "ffn_out"),
        "text",
        ("text", "response"),
        subspace(width, n_malicious=40, n_benign=50, **facts),
        strength,
        pattern=np.random.default_rng(5).standard_normal((width, 3)).astype(np.float32),
    )
    bounds = (np.array([-1, -0.1], np.float32), np.array([0.3, 2.7], np.float32))
    clip = Channel(
        Site(0, "layer_out"), "image", ("image",), subspace(width, 2, 1), 1.0, "clip", bounds
    )
    return Repair((projection, clip), "adaptive", "ünïcode", manifest or {})


@pytest.fixture
def folder(tmp_path):
    return save(made(), tmp_path / "repair")


def same(first, second):
    """Whether two repairs agree in every bit and setting."""
    assert (first.name, first.fusion, first.manifest) == (
        second.name,
        second.fusion,
        second.manifest,
    )
    for ours, theirs in zip(first.channels, second.channels, strict=True):
        a, b = vars(ours).copy(), vars(theirs).copy()
        arrays = [(a.pop(key), b.pop(key)) for key in ("bounds", "pattern")]
        s, t = vars(a.pop("subspace")).copy(), vars(b.pop("subspace")).copy()
        arrays += [(s.pop(key), t.pop(key)) for key in ("basis", "mean", "eigenvalues")]
        assert a == b and s == t
        for left, right in arrays:
            left, right = np.asarray(left), np.asarray(right)
            assert left.dtype == right.dtype and left.shape == right.shape
            assert left.tobytes() == right.tobytes()


def rewrite(folder, change_facts=None, change_tensors=None):
    """Change an artefact, and its digest with it."""
    facts = json.loads((folder / FACTS).read_text())
    tensors = {name: value.copy() for name, value in load_tensors(numbers(folder)).items()}
    if change_tensors:
        change_tensors(tensors)
    content = save_tensors(tensors)
    facts["sha256"] = hashlib.sha256(content).hexdigest()
    if change_facts:
        change_facts(facts)
    (folder / NUMBERS).write_bytes(content)
    (folder / FACTS).write_text(json.dumps(facts))
    return folder


def numbers(folder):
    return (folder / NUMBERS).read_bytes()


# -- round trip ------------------------------------------------------------------------------------


def test_a_round_trip_is_bit_equal_and_repairs_alike(vlm, folder):
    repair, back = made(), Repair.from_pretrained(folder, vlm)
    same(repair, back)
    batch = vlm.batch(tiny.mixed_examples(3))
    logits = []
    for one in (repair, back):
        with one.applied(vlm):
            logits.append(vlm.forward(batch))
    assert torch.equal(*logits)


def test_saving_again_gives_the_same_bytes(folder, tmp_path):
    again = Repair.from_pretrained(str(folder)).save_pretrained(tmp_path / "again")
    for name in (NUMBERS, FACTS, "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    save(load(again), again)  # in place
    same(load(again), made())


@given(
    width=st.integers(1, 40),
    data=st.data(),
    name=st.text(max_size=20),
    fusion=st.sampled_from(["adaptive", "sum"]),
    strength=st.floats(0, 1e6),
    manifest=st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none()),
    scopes=st.lists(st.sampled_from(["image", "text", "response", "all"]), min_size=1, max_size=4),
)
@few
def test_any_repair_survives_a_round_trip(width, data, name, fusion, strength, manifest, scopes):
    manifest.pop("model", None)
    rank = data.draw(st.integers(1, width))
    quantile = data.draw(st.none() | st.floats(0, 1e300))
    clip = data.draw(st.booleans())
    channel = Channel(
        Site(data.draw(st.integers(0, 99)), "ffn_out"),
        "image",
        tuple(scopes),
        subspace(width, rank, null_quantile=quantile, condition=1e300),
        strength,
        "clip" if clip else "project",
        (-np.ones(rank, np.float32), np.ones(rank, np.float32)) if clip else None,
    )
    repair = Repair((channel, channel), fusion, name, manifest)
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


# -- damage ----------------------------------------------------------------------------------------


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@few
def test_one_flipped_bit_is_refused(place, bit):
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(made(), Path(scratch))
        content = bytearray(numbers(folder))
        content[int(place * len(content))] ^= 1 << bit
        (folder / NUMBERS).write_bytes(content)
        with pytest.raises(ArtefactError, match="digest"):
            load(folder)


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_truncated_numbers_are_refused_even_with_a_matching_digest(folder, length):
    content = numbers(folder)[:length]
    (folder / NUMBERS).write_bytes(content)
    with pytest.raises(ArtefactError, match="digest"):
        load(folder)
    facts = json.loads((folder / FACTS).read_text())
    facts["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match="malformed"):
        load(folder)


@pytest.mark.parametrize("name", [NUMBERS, FACTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ArtefactError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match="nowhere"):
        Repair.from_pretrained("./nowhere")
    with pytest.raises(ArtefactError, match="nobody/nothing"):  # the Hub is switched off in tests
        load("nobody/nothing")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\udcff", '{"format": 1}'])
def test_facts_that_are_no_artefact_are_refused(folder, content):
    (folder / FACTS).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ArtefactError, match=r"JSON|format|lacks"):
        load(folder)


@pytest.mark.parametrize("version", [0, FORMAT + 1, "1", None])
def test_another_format_version_is_refused(folder, version):
    rewrite(folder, lambda facts: facts.update(format=version))
    with pytest.raises(ArtefactError, match=f"format {version}.*reads {FORMAT}"):
        load(folder)


@pytest.mark.parametrize("tensor", ["basis", "mean", "pattern"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(folder, tensor, bad):
    def spoil(tensors):
        tensors[f"channels.0.{tensor}"].flat[1] = bad

    with pytest.raises(ArtefactError, match="finite"):
        load(rewrite(folder, change_tensors=spoil))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_bounds_that_are_not_finite_are_refused(folder, bad):
    def spoil(tensors):
        tensors["channels.1.low"][0] = bad

    with pytest.raises(ArtefactError, match="finite"):
        load(rewrite(folder, change_tensors=spoil))


@pytest.mark.parametrize("tensor", ["basis", "mean", "eigenvalues", "pattern"])
def test_a_missing_tensor_is_refused(folder, tensor):
    rewrite(folder, change_tensors=lambda tensors: tensors.pop(f"channels.0.{tensor}"))
    with pytest.raises(ArtefactError, match=tensor):
        load(folder)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("0.basis", (3, tiny.WIDTH)),
        ("0.mean", (1, tiny.WIDTH)),
        ("0.pattern", (tiny.WIDTH, 2)),
        ("1.high", (3,)),
        ("1.low", ()),
    ],
)
def test_a_tensor_of_another_shape_is_refused(folder, tensor, shape):
    def spoil(tensors):
        tensors[f"channels.{tensor}"] = np.zeros(shape, np.float32)

    with pytest.raises(ArtefactError, match="shape"):
        load(rewrite(folder, change_tensors=spoil))


@pytest.mark.parametrize(
    "change",
    [
        {"site": "one.ffn_out"},
        {"site": "1.nowhere"},
        {"site": 1},
        {"strength": -1},
        {"strength": float("nan")},
        {"strength": "1"},
        {"operation": "clip"},
        {"rank": 2},
        {"width": None},
        {"scopes": None},
    ],
    ids=str,
)
def test_a_channel_that_makes_no_sense_is_refused(folder, change):
    rewrite(folder, lambda facts: facts["channels"][0].update(change))
    with pytest.raises(ArtefactError):
        load(folder)


@pytest.mark.parametrize(
    "change", [{"channels": []}, {"channels": None}, {"channels": [1]}, {"fusion": "mean"}], ids=str
)
def test_facts_that_make_no_repair_are_refused(folder, change):
    with pytest.raises(ArtefactError):
        load(rewrite(folder, lambda facts: facts.update(change)))


def test_what_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save(made(), tmp_path / "file" / "repair")
    with pytest.raises(UsageError, match="JSON"):
        save(made(manifest={"rate": float("nan")}), tmp_path / "repair")
    with pytest.raises(ArtefactError):
        load(tmp_path / "repair")


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
    assert "| 1.ffn_out | text | text, response | project | 3 | 1 |" in text
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
