"""Artefacts: what is written comes back bit for bit; whatever else is found is refused."""

import hashlib
import json
import pickle
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from care.anatomy import Site
from care.artefact import FORMAT, card, load, model_facts, save
from care.errors import ArtefactError, StorageError, UsageError
from care.repair import Channel, Repair
from care.vlm import VLM
from fixtures_artefact import FACTS, NUMBERS, a_gate, made, numbers, rewrite, subspace

few = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


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
        for part in ("subspace", "gate"):
            a |= {f"{part}.{key}": value for key, value in vars_of(a.pop(part)).items()}
            b |= {f"{part}.{key}": value for key, value in vars_of(b.pop(part)).items()}
        arrays = [key for key, value in a.items() if isinstance(value, np.ndarray)]
        assert len(arrays) == (3 if ours.gate is None else 7)
        pairs = [(a.pop(key), b.pop(key)) for key in arrays]
        assert a == b
        for left, right in pairs:
            assert left.dtype == right.dtype and left.shape == right.shape
            assert left.tobytes() == right.tobytes()


def vars_of(part):
    return {"is": None} if part is None else vars(part)


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
    count = data.draw(st.integers(0, 4))
    shares = st.floats(0, 1) | st.sampled_from([0, 1])
    gate = (
        a_gate(
            width,
            count or 1,
            families=tuple(
                data.draw(st.just([]) | st.lists(st.text(), min_size=count, max_size=count))
            ),
            opened=data.draw(st.dictionaries(st.text(max_size=5), shares)),
            opened_benign=data.draw(st.none() | shares),
            quantile=data.draw(st.none() | shares),
        )
        if count
        else None
    )
    channel = Channel(
        Site(data.draw(st.integers(0, 99)), "ffn_out"),
        "image",
        tuple(scopes),
        subspace(width, rank, null_quantile=quantile, condition=1e300),
        strength,
        gate,
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


@pytest.mark.parametrize(
    "place",
    [
        "runs/repair",
        "runs/demo/repair",
        "repair",
        "./repair",
        "../repair",
        "/repair",
        "~/repair",
        "me/repair/",
        "runs/a b",
        Path("me/repair"),
    ],
    ids=str,
)
def test_what_means_a_folder_is_not_asked_of_the_hub(tmp_path, monkeypatch, place):
    def refuse(*arguments, **options):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(
        ArtefactError, match=rf"no artefact in {re.escape(str(place))}: pass a folder"
    ):
        load(place)


def test_owner_and_name_are_asked_of_the_hub_and_its_answer_is_one_line(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(name, **options):
        asked.append(name)
        raise OSError("404 Client Error.\n\nRepository not found for the url.\n")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ArtefactError, match=r"me/my-repair_1\.0 is neither.*404 Client Error"
    ) as caught:
        load("me/my-repair_1.0")
    assert asked == ["me/my-repair_1.0"]
    assert "\n" not in str(caught.value)


def test_a_file_of_an_artefact_is_not_the_artefact(folder):
    with pytest.raises(ArtefactError, match=r"repair\.json is a file"):
        load(folder / FACTS)


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


@pytest.mark.parametrize(
    "tensor", ["basis", "mean", "gate.filters", "gate.mean", "gate.low", "gate.high"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(folder, tensor, bad):
    def spoil(tensors):
        tensors[f"channels.0.{tensor}"].flat[1] = bad

    with pytest.raises(ArtefactError, match="finite"):
        load(rewrite(folder, change_tensors=spoil))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("0.basis", np.int32),
        ("0.basis", np.float64),
        ("0.mean", np.float16),
        ("0.eigenvalues", np.float32),
        ("0.gate.filters", np.float16),
        ("0.gate.mean", bool),
        ("0.gate.low", np.float64),
        ("0.gate.high", np.int64),
    ],
)
def test_a_tensor_of_another_type_is_refused(folder, tensor, kind):
    def spoil(tensors):
        tensors[f"channels.{tensor}"] = tensors[f"channels.{tensor}"].astype(kind)

    with pytest.raises(ArtefactError, match=r"channel 0.*" + np.dtype(kind).name):
        load(rewrite(folder, change_tensors=spoil))


@pytest.mark.parametrize(
    "values",
    [[3.0, np.nan, 1.0], [np.inf, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 2.0], [[3.0], [2.0], [1.0]]],
    ids=str,
)
def test_eigenvalues_that_make_no_sense_are_refused(folder, values):
    def spoil(tensors):
        tensors["channels.0.eigenvalues"] = np.array(values)

    with pytest.raises(ArtefactError, match=r"channel 0.*eigenvalues"):
        load(rewrite(folder, change_tensors=spoil))


def test_a_first_statistic_of_another_kind_and_no_eigenvalues_at_all_are_fine(folder):
    for values in ([0.5, 3.0, 2.0, 1.0], []):

        def change(tensors, values=values):
            tensors["channels.0.eigenvalues"] = np.array(values)

        assert len(load(rewrite(folder, change_tensors=change)).channels) == 2


@pytest.mark.parametrize(
    "tensor", ["basis", "mean", "eigenvalues", "gate.filters", "gate.mean", "gate.low", "gate.high"]
)
def test_a_missing_tensor_is_refused(folder, tensor):
    rewrite(folder, change_tensors=lambda tensors: tensors.pop(f"channels.0.{tensor}"))
    with pytest.raises(ArtefactError, match=tensor):
        load(folder)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("0.basis", (3, tiny.WIDTH)),
        ("0.mean", (1, tiny.WIDTH)),
        ("0.gate.filters", (tiny.WIDTH, 3)),
        ("0.gate.filters", (2, tiny.WIDTH)),
        ("0.gate.filters", (tiny.WIDTH,)),
        ("0.gate.mean", (tiny.WIDTH - 1,)),
        ("0.gate.high", (3,)),
        ("0.gate.low", (1,)),
        ("0.gate.low", ()),
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
        {"rank": 2},
        {"width": None},
        {"scopes": None},
        {"scopes": "text"},
        {"scopes": []},
        {"scopes": [["text"]]},
        {"modality": "audio"},
        {"condition": "large"},
        {"n_benign": [1]},
    ],
    ids=str,
)
def test_a_channel_that_makes_no_sense_is_refused(folder, change):
    rewrite(folder, lambda facts: facts["channels"][0].update(change))
    with pytest.raises(ArtefactError):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": []},
        {"channels": None},
        {"channels": {"a": 1}},
        {"channels": [1]},
        {"fusion": "mean"},
        {"fusion": []},
        {"name": None},
        {"manifest": None},
        {"manifest": [1]},
        {"manifest": {"model": "org/model"}},
        {"manifest": {"evaluation": [1]}},
    ],
    ids=str,
)
def test_facts_that_make_no_repair_are_refused(folder, change):
    with pytest.raises(ArtefactError):
        load(rewrite(folder, lambda facts: facts.update(change)))


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "1" + 400 * "0"])
def test_numbers_too_large_for_a_float_are_refused(folder, number):
    for key in ("strength", "condition"):
        text = save(made(), folder).joinpath(FACTS).read_text()
        (folder / FACTS).write_text(
            re.sub(rf'"{key}": [^,\n]*', f'"{key}": {number}', text, count=1)
        )
        with pytest.raises(ArtefactError, match=r"finite number"):
            load(folder)


def test_facts_nested_too_deeply_are_refused(folder):
    (folder / FACTS).write_text('{"format": ' + 50_000 * "[")
    with pytest.raises(ArtefactError, match="nested too deeply"):
        load(folder)
    deep = []
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested too deeply"):
        save(made(manifest={"deep": deep}), folder / "new")
    while deep:  # piece by piece: freeing it at once recurses as deeply
        deep = deep.pop()


@pytest.mark.parametrize("place", ["basis", "mean", "eigenvalues"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, place, bad):
    repair = made()
    channel = repair.channels[0]
    values = np.full_like(getattr(channel.subspace, place), bad)
    spoilt = replace(channel, subspace=replace(channel.subspace, **{place: values}))
    with pytest.raises(ArtefactError, match=f"channel 1.*{place}"):
        save(replace(repair, channels=(repair.channels[1], spoilt)), tmp_path / "repair")
    assert not (tmp_path / "repair").exists()


@pytest.mark.parametrize("manifest", [None, {"model": "org/model"}, {"evaluation": 1}], ids=str)
def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path, manifest):
    with pytest.raises(ArtefactError, match="manifest"):
        save(replace(made(), manifest=manifest), tmp_path / "repair")
    assert not (tmp_path / "repair").exists()


def test_directions_in_float64_are_stored_in_float32(tmp_path):
    repair = made()
    channel = repair.channels[0]
    wide = replace(channel.subspace, basis=channel.subspace.basis.astype(np.float64))
    same(
        load(save(replace(repair, channels=(replace(channel, subspace=wide),)), tmp_path)),
        replace(repair, channels=(channel,)),
    )


def test_what_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save(made(), tmp_path / "file" / "repair")
    with pytest.raises(UsageError, match="JSON"):
        save(made(manifest={"rate": float("nan")}), tmp_path / "repair")
    assert not (tmp_path / "repair").exists()


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
