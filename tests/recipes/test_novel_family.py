"""The recipe that leaves a family out: each count of attacks holds those of the smaller ones."""

from __future__ import annotations

from dataclasses import replace

from care.defenses.repair.fitting import Fitter
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.models.sites import Site
from kit.fits import material
from recipes.novel_family import samples, thresholds


def test_samples_are_nested_and_of_the_family_alone(vlm):
    fitter = Fitter(vlm, material(), PRESETS["corrected"], 8)
    parts = samples(fitter, "template", [1, 4, 12])
    ids = {count: [e.id for e, _ in part.complied] for count, part in parts.items()}
    assert [len(each) for each in ids.values()] == [1, 4, 12]
    assert ids[4] == ids[12][:4] and ids[1] == ids[4][:1]
    assert all(name.startswith("template-") for name in ids[12])
    assert not parts[4].refused and not parts[4].answered


def test_thresholds_tell_each_repair(vlm):
    fitter = Fitter(vlm, material(), PRESETS["corrected"], 8)
    edits = fitter.repair([Site(2, "layer_out")])
    repair = Repair.of(replace(edits, memory=fitter.remembered(edits.channels)))
    found = thresholds({0: repair})["0"]
    assert found["monitors"] == {} and found["waiting"] == {}
    assert found["gates"]["text"].keys() == {"template"}
