"""Which sites a diagnosis says are to be mended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from care.diagnosis.results import Diagnosis
from care.models.sites import Site
from care.typed import from_tree
from kit.reports import report_tree


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return from_tree(Diagnosis, report_tree()["diagnosis"], "diagnosis")


def ffns(*layers: int) -> tuple[Site, ...]:
    return tuple(Site(layer, "ffn_out") for layer in layers)


def test_with_a_channel_scan_they_are_those_it_recommends(found: Diagnosis) -> None:
    assert found.channels is not None
    recommended = {row.site for row in found.channels.sites if row.recommended}
    assert {site for sites in found.sites.values() for site in sites} == recommended


def test_without_one_they_are_the_ffns_of_the_best_window_of_layers(found: Diagnosis) -> None:
    bare = replace(found, channels=None)
    cells = [c for c in found.heatmap if c.component == "layer" and c.window == 3]
    middle = max(cells, key=lambda c: c.selectivity_low).layer
    layers = ffns(middle - 1, middle, middle + 1)
    assert bare.sites == {"image": layers, "text": layers}
    assert found.sites != bare.sites


def test_without_windows_they_are_the_best_single_layers(found: Diagnosis) -> None:
    heatmap = tuple(cell for cell in found.heatmap if cell.window == 1)
    bare = replace(found, channels=None, heatmap=heatmap)
    rows = sorted(
        (row for row in found.layers if row.component == "layer"), key=lambda r: -r.selectivity_low
    )
    assert bare.sites["text"] == ffns(*(row.layer for row in rows[:3]))


def test_without_whole_layers_ffns_decide_and_without_either_there_are_none(
    found: Diagnosis,
) -> None:
    rows = [row for row in found.layers if row.component == "ffn"]
    parts = replace(found, channels=None, heatmap=(), layers=tuple(rows))
    best = sorted(rows, key=lambda row: -row.selectivity_low)[:3]
    assert parts.sites["image"] == ffns(*(row.layer for row in best))
    assert replace(found, channels=None, heatmap=(), layers=()).sites == {}
