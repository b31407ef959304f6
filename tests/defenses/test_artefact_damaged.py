"""Damaged artefacts: whatever isn't what was written is refused in one sentence."""

import hashlib
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.defenses.artefact import FORMATS, digest, load, save
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, StorageError, UsageError
from kit import tiny
from kit.artefacts import FACTS, NUMBERS, folder, made, numbers, rewrite, state  # noqa: F401

few = settings(max_examples=30, deadline=None)


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
    state(folder, json.loads((folder / FACTS).read_text()))
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
        Repair.load("./nowhere")
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
    with pytest.raises(ArtefactError, match=r"JSON|format"):
        load(folder)


@pytest.mark.parametrize("version", [0, FORMATS[-1] + 1, "1", 2.0, True, None])
def test_another_format_version_is_refused(folder, version):
    rewrite(folder, lambda facts: facts.update(format=version))
    with pytest.raises(ArtefactError, match=f"format {version}.*reads 2 and 3"):
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
        {"oblique": "yes"},
    ],
    ids=str,
)
def test_a_channel_that_makes_no_sense_is_refused(folder, change):
    rewrite(folder, lambda facts: facts["channels"][0].update(change))
    with pytest.raises(ArtefactError) as caught:
        load(folder)
    (name,) = change
    said = {"strength": "number", "rank": "shape"}.get(name, name)
    assert said in str(caught.value)


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
    (name,) = change
    with pytest.raises(ArtefactError, match=rf"(`{name}|channel).*; fetch it again or fit a new"):
        load(rewrite(folder, lambda facts: facts.update(change)))


@pytest.mark.parametrize("key", ["name", "fusion", "channels", "manifest"])
def test_a_fact_that_is_missing_is_named(folder, key):
    with pytest.raises(ArtefactError, match=rf"repair\.json can't be used: `{key}` is missing; f"):
        load(rewrite(folder, lambda facts: facts.pop(key)))


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


def test_what_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save(made(), tmp_path / "file" / "repair")
    with pytest.raises(UsageError, match="JSON"):
        save(made(manifest={"rate": float("nan")}), tmp_path / "repair")
    assert not (tmp_path / "repair").exists()


# -- one digest over everything that decides what a repair does ------------------------------------


def _changed(value):
    """Another value of the same type, and for what holds others also one thing less."""
    if isinstance(value, dict):
        return [{k: v for k, v in value.items() if k != key} for key in value] + [value | {"x": 1}]
    if isinstance(value, list):
        return [value[:-1], [*value, value[0]] if value else [1], value[::-1]]
    if isinstance(value, str):
        return [value + "x"]
    return [1 if value is None or value is False else value * 0.5, None]


def _places(value, path=()):
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    items = value.items() if isinstance(value, dict) else ()
    for key, each in items:
        yield from _places(each, (*path, key))


def _put(facts, path, value):
    for key in path[:-1]:
        facts = facts[key]
    facts[path[-1]] = value


def test_any_change_of_the_facts_is_refused(tmp_path):
    """Each entry of repair.json, at any depth, changed, taken out or doubled."""
    manifest = {"model": {"layers": 4}, "fitted_on": {"goals": {"scheme": "s", "digests": ["a"]}}}
    folder = save(made(manifest=manifest), tmp_path / "repair")
    whole = (folder / FACTS).read_text()
    tried = 0
    for path in list(_places(json.loads(whole)))[1:]:
        value = json.loads(whole)
        for key in path:
            value = value[key]
        for other in _changed(value):
            if other == value:
                continue
            facts = json.loads(whole)
            _put(facts, path, other)
            (folder / FACTS).write_text(json.dumps(facts))
            with pytest.raises(ArtefactError):
                load(folder)
            tried += 1
    assert tried > 80
    (folder / FACTS).write_text(json.dumps(json.loads(whole), sort_keys=True, indent=7))
    assert load(folder).name == made().name  # the same facts in another order and layout


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 0.0},
        {"strength": -0.0},
        {"strength": 1e-300},
        {"strength": 49},
        {"site": "0.ffn_out"},
        {"scopes": ["text"]},
        {"modality": "image"},
    ],
    ids=str,
)
def test_a_changed_channel_is_refused_by_the_digest(folder, change):
    facts = json.loads((folder / FACTS).read_text())
    facts["channels"][0] |= change
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match="digest"):
        load(folder)


@pytest.mark.parametrize("key", ["strength", "site", "name", "sha256"])
def test_a_key_that_stands_twice_is_refused(folder, key):
    text = (folder / FACTS).read_text()
    found = re.search(rf'"{key}": [^,\n]*,?', text)
    assert found is not None
    line = found[0].rstrip(",")
    (folder / FACTS).write_text(text.replace(line, f"{line}, {line}", 1))
    with pytest.raises(ArtefactError, match=f"{key}.*twice"):
        load(folder)


def test_two_channels_of_one_site_modality_and_scope_are_refused(folder, tmp_path):
    channel = made().channels[0]
    for scopes in (channel.scopes, ("response", "image"), ["text", "text"]):
        doubled = replace(made(), channels=(channel, replace(channel, scopes=scopes)))
        with pytest.raises(ArtefactError, match=r"2 channels .*1\.ffn_out.*text.*(text|response)"):
            save(doubled, tmp_path / "new")
    assert not (tmp_path / "new").exists()

    def double(facts):
        facts["channels"][1] |= {key: facts["channels"][0][key] for key in ("site", "modality")}
        facts["channels"][1]["scopes"] = facts["channels"][0]["scopes"]

    with pytest.raises(ArtefactError, match="2 channels"):
        load(rewrite(folder, double))
    apart = replace(made(), channels=(channel, replace(channel, scopes=("image",))))
    assert len(load(save(apart, tmp_path / "apart")).channels) == 2


def test_numbers_that_no_channel_uses_are_refused(folder):
    rewrite(folder, lambda facts: facts["channels"].pop())
    with pytest.raises(ArtefactError, match=r"no channel .*channels\.1\.basis"):
        load(folder)
    save(made(), folder)
    rewrite(folder, change_tensors=lambda t: t.update({"more": np.zeros(3, np.float32)}))
    with pytest.raises(ArtefactError, match=r"no channel .*more"):
        load(folder)


@pytest.mark.parametrize("strength", [50.0001, 51, 1e38, 1e308, 2**70])
def test_a_strength_beyond_the_limit_is_refused(folder, strength):
    with pytest.raises(ArtefactError, match=r"strength .*at most 50"):
        load(rewrite(folder, lambda facts: facts["channels"][0].update(strength=strength)))
    with pytest.raises(UsageError, match="at most 50"):
        made(strength=strength)
    with pytest.raises(UsageError, match="at most 50"):
        made().with_strength(strength)


@pytest.mark.parametrize("tensor", ["basis", "mean", "gate.filters", "gate.mean", "gate.high"])
@pytest.mark.parametrize("large", [1e38, -1e30, 2e9])
def test_numbers_under_which_every_answer_is_broken_are_refused(folder, tensor, large):
    def spoil(tensors):
        tensors[f"channels.0.{tensor}"].flat[0] = abs(large) if tensor == "gate.high" else large

    with pytest.raises(ArtefactError, match=r"channel 0.*(length|number) .*at most"):
        load(rewrite(folder, change_tensors=spoil))


def test_an_oblique_channel_needs_its_directions(folder):
    with pytest.raises(ArtefactError, match=r"lacks 'channels\.0\.write'"):
        load(rewrite(folder, lambda facts: facts["channels"][0].update(oblique=True)))


def test_directions_to_write_along_that_are_no_directions_are_refused(tmp_path):
    channel = made().channels[0]
    basis = channel.subspace.basis
    for write, words in (
        (basis[:, :2], "shape"),
        (np.inf * basis, "finite"),
        (2e9 + basis, "most"),
    ):
        wrong = replace(channel, subspace=replace(channel.subspace, write=write))
        with pytest.raises(ArtefactError, match=words):
            save(replace(made(), channels=(wrong,)), tmp_path)


def test_an_artefact_of_the_first_format_is_refused_with_what_to_do(folder):
    facts = json.loads((folder / FACTS).read_text()) | {"format": 1}
    facts["sha256"] = hashlib.sha256(numbers(folder)).hexdigest()
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(
        ArtefactError, match=r"format 1, .*reads 2 and 3, whose digest.*fit it again"
    ):
        load(folder)


def test_the_digest_is_that_of_the_file_and_of_what_was_read(folder):
    stated = json.loads((folder / FACTS).read_text())["sha256"]
    assert made().digest() == digest(load(folder)) == stated
    assert made(strength=2.0).digest() != stated
    assert made(manifest={"a": 1}).digest() != stated
