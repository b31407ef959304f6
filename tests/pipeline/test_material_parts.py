"""Parts of the material: fewer requests, others for each number, without suites, mislabelled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from care.defenses.material import CLASSES
from care.errors import FitError
from care.models.sites import Site
from care.pipeline.material_parts import apart, drawn, thinned
from kit.fits import material


def test_material_is_thinned_evenly_with_its_activations() -> None:
    found = material()
    site = Site(2, "layer_out")
    rows = tuple(np.arange(len(getattr(found, n)))[:, None] for n in CLASSES)
    few = thinned(replace(found, decisions={site: rows}), 6)
    for name, kept in zip(CLASSES, few.decisions[site], strict=True):
        part = getattr(found, name)
        assert getattr(few, name) == tuple(part[i] for i in kept[:, 0])
        assert len(kept) == 6


def test_material_apart_holds_nothing_of_the_suites_that_are_left_out() -> None:
    found = material()
    few = apart(found, ("beside",))
    assert {e.suite for e, _ in few.complied} == {"template"} and len(few.complied) == 12
    assert (few.refused, few.answered) == (found.refused, found.answered)
    assert apart(found, ()) == found
    with pytest.raises(FitError, match="no example of the class 'complied'"):
        apart(found, ("beside", "template"))
    with pytest.raises(FitError, match="is of the suite elsewhere"):
        apart(found, ("elsewhere",))


def test_parts_are_drawn_by_number_and_number_0_is_evenly_spaced() -> None:
    found = material()
    assert drawn(found, 5, 0) == thinned(found, 5)
    parts = [drawn(found, 5, number) for number in (1, 2)]
    assert parts[0] == drawn(found, 5, 1) and parts[0] != parts[1]
    for name in CLASSES:
        assert len(getattr(parts[0], name)) == 5
        assert set(getattr(parts[0], name)) <= set(getattr(found, name))
    assert drawn(found, 1000, 1) == found
