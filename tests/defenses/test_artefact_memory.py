"""What a repair remembers, in files: what is saved is read, and damage and mix-ups are told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from care.defenses import artefact_memory
from care.defenses.artefact import MEMORY
from care.defenses.monitors.choosing import fit_monitors
from care.defenses.monitors.features import Tag
from care.defenses.monitors.memory import FittedRows, HeldRows, MonitorMemory
from care.defenses.repair.families import Told
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.folding import folded
from care.defenses.repair.gate import GateConfig
from care.defenses.repair.memory import DecisionMemory, Memory
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.defenses.stored import digest_of
from care.errors import ArtefactError
from care.models.sites import Site
from kit.fits import material
from kit.repairs import made
from kit.said import SMALL, said

FACTS, NUMBERS = MEMORY


@pytest.fixture(scope="module")
def repair(vlm) -> Repair:
    """Channels and monitors with all that they rest on."""
    fitter = Fitter(vlm, material(), PRESETS["corrected"], 8)
    edits = Repair.of(fitter.repair([Site(2, "layer_out")]))
    found = fit_monitors(vlm, said(20), said(16, start=100), SMALL)
    memory = fitter.remembered(edits.channels, found.memory)
    return replace(edits, monitors=found.monitors, memory=memory)


def arrays(memory: Memory) -> dict[str, np.ndarray]:
    found = {}
    for site, parts in memory.decisions.rows.items():
        found |= {f"{site} {place}": rows for place, rows in enumerate(parts)}
    for place, each in enumerate(memory.monitors):
        found |= {f"{place} x": each.fitted.x, f"{place} held": each.held.x}
        found |= {f"{place} of": each.held.of}
    return found


def test_what_is_remembered_is_read(repair, vlm, tmp_path):
    read = Repair.load(repair.save(tmp_path / "r"), vlm)
    ours, theirs = arrays(repair.memory), arrays(read.memory)
    assert ours.keys() == theirs.keys()
    for name, rows in ours.items():
        assert_array_equal(theirs[name], rows)
    assert read.memory.decisions.told == repair.memory.decisions.told
    for one, other in zip(repair.memory.monitors, read.memory.monitors, strict=True):
        assert (one.key, one.fitted.tags, one.held.kinds) == (
            *(other.key, other.fitted.tags, other.held.kinds),
        )
        assert (one.shrinkage, one.hard, one.share) == (other.shrinkage, other.hard, other.share)
    new = said(12, start=50, family="novel")
    part = sorted_said(new)
    kept, again = folded(repair, vlm, part), folded(read, vlm, part)
    assert Repair.of(kept).digest() == Repair.of(again).digest()


def sorted_said(heard):
    from care.defenses.material import Sorted

    return Sorted(
        tuple((e, a) for e, a, harmful in heard if harmful),
        tuple((e, a) for e, a, harmful in heard if not harmful and e.kind == "malicious"),
        tuple((e, a) for e, a, harmful in heard if e.kind == "benign"),
    )


def test_no_words_of_requests_or_answers_are_in_the_files(repair, tmp_path):
    folder = repair.save(tmp_path / "r")
    content = b"".join((folder / name).read_bytes() for name in MEMORY)
    for words in (b"forge", b"passport", b"river", b"you'll need", b"To plant"):
        assert words not in content
    assert b"template" in content  # names of families are there


def test_equal_rows_are_kept_once(tmp_path):
    rows = np.repeat(np.arange(12, dtype=np.float32).reshape(3, 4), 50, axis=0)
    tags = tuple(Tag(n < 75, "k", f"{n:016x}") for n in range(1, 151))
    monitor = MonitorMemory(
        "answer", Site(1, "ffn_out"), "mean", FittedRows(rows, tags),
        HeldRows(rows, np.arange(150, dtype=np.int32), ("k",) * 150), 0.2, 0.025, 0.0125,
    )  # fmt: skip
    _, numbers = artefact_memory.packed(Memory(None, (monitor,)), "0")
    (tmp_path / NUMBERS).write_bytes(numbers)
    tensors = load_file(tmp_path / NUMBERS)
    assert tensors["monitors.0.fitted.rows"].shape == (3, 4)
    assert_array_equal(tensors["monitors.0.held.rows"][tensors["monitors.0.held.index"]], rows)


def test_without_its_memory_a_repair_does_the_same(repair, tmp_path):
    folder = repair.save(tmp_path / "r")
    for name in MEMORY:
        (folder / name).unlink()
    read = Repair.load(folder)
    assert read.memory is None and read.digest() == repair.digest()
    assert Repair.load(repair.save(tmp_path / "s", memory=False)).memory is None
    repair.save(tmp_path / "r", memory=True)
    assert Repair.load(folder).memory is not None
    replace(repair, memory=None).save(folder)  # that of before doesn't stay
    assert not any((folder / name).exists() for name in MEMORY)


def test_a_large_one_is_left_out_and_that_is_said(repair, tmp_path, monkeypatch):
    monkeypatch.setattr(artefact_memory, "LIMIT", 1000)
    with pytest.warns(UserWarning, match=r"remembers .* isn't kept, .* memory=True"):
        folder = repair.save(tmp_path / "r")
    assert Repair.load(folder).memory is None
    assert Repair.load(repair.save(tmp_path / "s", memory=True)).memory is not None


def test_another_repairs_memory_is_refused(repair, tmp_path):
    one = repair.save(tmp_path / "one")
    other = replace(repair, name="other").save(tmp_path / "other")
    for name in MEMORY:
        (one / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ArtefactError, match="belongs to another repair"):
        Repair.load(one)


@pytest.mark.parametrize("name", MEMORY)
def test_damage_is_told(repair, tmp_path, name):
    folder = repair.save(tmp_path / "r")
    content = bytearray((folder / name).read_bytes())
    place = content.rindex(b"0") if name == FACTS else len(content) - 1
    content[place] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=r"damaged or changed|can't be used"):
        Repair.load(folder)


def rewritten(folder, tensors=None, **changes):
    """The memory with other tensors or facts and a digest that fits."""
    numbers = (folder / NUMBERS).read_bytes()
    if tensors is not None:
        save_file(tensors, folder / NUMBERS)
        numbers = (folder / NUMBERS).read_bytes()
    facts = json.loads((folder / FACTS).read_text()) | changes
    facts["sha256"] = digest_of(facts, numbers)
    (folder / FACTS).write_text(json.dumps(facts))


def test_what_makes_no_memory_is_refused(repair, tmp_path):
    folder = repair.save(tmp_path / "r")
    whole = load_file(folder / NUMBERS)
    held = whole["monitors.0.held.of"]
    changes = {
        "monitors.0.fitted.groups": whole["monitors.0.fitted.groups"][1:],
        "decisions.complied.families": whole["decisions.complied.families"] + 100,
        "decisions.refused.families": whole["decisions.refused.families"] - 100,
        "decisions.answered.goals": whole["decisions.answered.goals"][:3],
        "decisions.complied.2.layer_out.index": whole["decisions.complied.2.layer_out.index"] - 9,
        "decisions.refused.2.layer_out.rows": whole["decisions.refused.2.layer_out.rows"] * np.nan,
        "monitors.0.held.of": np.where(held == 0, 1, held),
    }
    for name, part in changes.items():
        rewritten(folder, whole | {name: np.ascontiguousarray(part)})
        with pytest.raises(ArtefactError, match=r"[Tt]he memory (in|has)"):
            Repair.load(folder)
    rewritten(folder, {k: v for k, v in whole.items() if k != "monitors.0.held.of"})
    with pytest.raises(ArtefactError, match=r"malformed \(it lacks 'monitors.0.held.of'\)"):
        Repair.load(folder)
    rewritten(folder, whole, format=9)
    with pytest.raises(ArtefactError, match="format 9"):
        Repair.load(folder)


def test_a_memory_of_channels_alone_is_one(tmp_path):
    told = tuple(
        tuple(
            Told("f", f"{place:016x}", "" if place % 2 else f"{place:016x}")
            for place in range(1, n)
        )
        for n in (9, 5, 7)
    )
    rows = tuple(np.random.default_rng(0).normal(size=(len(t), 4)).astype(np.float32) for t in told)
    memory = Memory(
        DecisionMemory(
            told, {Site(1, "layer_out"): rows}, "layer_out", GateConfig(), "oblique", 0.5
        )
    )
    read = Repair.load(Repair((made(),), memory=memory).save(tmp_path / "r"))
    assert read.memory.decisions.told == told and read.memory.monitors == ()
    assert read.memory.decisions.gate == GateConfig()
    assert (read.memory.decisions.projection, read.memory.decisions.beta) == ("oblique", 0.5)
