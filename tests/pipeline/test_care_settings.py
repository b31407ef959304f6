"""The settings of CARE's presets: their layers, and repairs with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest

from care.defenses.monitors.choosing import MonitorsFit
from care.defenses.monitors.monitor import Monitor
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.presets import PRESETS, Preset
from care.defenses.repair.repair import Repair
from care.evaluation.results import Results
from care.models.sites import Site
from care.models.vlm import VLM
from care.pipeline.care_settings import CareSettings, open_settings
from kit.fits import material

DEEP, EARLY = Site(3, "layer_out"), Site(1, "layer_out")


@dataclass
class Work:
    """A job that has monitors whose threshold is one less their share of false alarms."""

    vlm: VLM

    def __post_init__(self) -> None:
        self.fitted: list[tuple[str, tuple[float, ...]]] = []

    def monitors(
        self, fitter: Fitter, table: Results, name: str, shares: Any, *kept: Any
    ) -> MonitorsFit:
        self.fitted.append((name, tuple(shares)))
        others = {share: (Monitor("request", 1.0 - share),) for share in shares}
        return MonitorsFit((), (), {}, others)

    def seconds(self, stage: str) -> float:
        return 1000.0


def diagnosis(image: tuple[Site, ...], text: tuple[Site, ...] = ()) -> Any:
    sites = {"image": image} | ({"text": text} if text else {})
    return SimpleNamespace(sites=sites, channels=True, ablated_layers=lambda: image)


def settings(
    vlm: VLM, preset: Preset, found: Any, *, watched: bool = True
) -> tuple[CareSettings, Work]:
    work, config = Work(vlm), PRESETS["corrected"]
    config = config if watched else replace(config, monitors=None)
    fitter = cache(lambda number: Fitter(vlm, material(), config))
    own = CareSettings(cast("Any", work), preset, fitter, found, Results([]), "watching")
    return own, work


def test_layers_that_are_recommended_come_first_then_each_alone_and_those_by_depth(
    vlm: VLM,
) -> None:
    own, _ = settings(vlm, "corrected", diagnosis((DEEP, EARLY)))
    assert own.searched["image_layers"] == ((1, 3), (3,), (1,), (2,))
    assert own.searched["text_layers"][0] == (2,)  # none is recommended
    assert "layers" not in own.searched
    paper, _ = settings(vlm, "paper", diagnosis((Site(1, "ffn_out"),)))
    assert paper.searched["layers"] == ((1,), (2,))
    assert "image_layers" not in paper.searched
    assert own.searched.keys() == open_settings("corrected").keys()
    assert paper.searched.keys() == open_settings("paper").keys()


def test_the_presets_own_settings_are_tried_first_and_make_the_preset(vlm: VLM) -> None:
    own, _ = settings(vlm, "corrected", diagnosis((DEEP,), (EARLY,)), watched=False)
    wanted = own.wanted(8, 0)
    assert len({tuple(each.items()) for each in wanted}) == len(wanted) == 8
    made, seconds = own.made(wanted[0])
    fitter = Fitter(vlm, material(), replace(PRESETS["corrected"], monitors=None))
    plain = Repair.of(fitter.repair({"image": [DEEP], "text": [EARLY]}, "corrected"))
    assert isinstance(made, Repair) and made.digest() == plain.digest() and seconds < 1000
    other, _ = own.made(wanted[0] | {"strength": 2.0, "image_layers": (1, 3)})
    assert isinstance(other, Repair) and not other.monitors
    assert {channel.strength for channel in other.channels} == {2.0}
    places = {(channel.modality, channel.site.layer) for channel in other.channels}
    assert places == {("image", 1), ("image", 3), ("text", 1)}


def test_monitors_are_fitted_once_for_all_false_alarms_and_then_for_those_taken(vlm: VLM) -> None:
    own, work = settings(vlm, "corrected", diagnosis((DEEP,), (EARLY,)))
    options = own.wanted(1, 0)[0] | {"false_alarms": 0.02}
    first, seconds = own.made(options)
    second, _ = own.made(options, 1)
    for made in (first, second):
        assert isinstance(made, Repair)
        assert [monitor.threshold for monitor in made.monitors] == [0.98]
    assert work.fitted == [("watching", (0.05, 0.02, 0.1)), ("watching-1", (0.02,))]
    assert seconds > 1000
    config = own.fitter(options).config.monitors
    assert config is not None and config.false_alarms == 0.02


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_presets_without_monitors_ask_for_none(vlm: VLM, preset: Preset) -> None:
    own, work = settings(vlm, preset, diagnosis((Site(1, "ffn_out"),)))
    made, _ = own.made(own.wanted(1, 0)[0] | {"rank": 2})
    assert isinstance(made, Repair) and not made.monitors and not work.fitted
    assert made.manifest["config"]["subspace"]["rank"] == 2
    assert {channel.site.kind for channel in made.channels} == {"ffn_out"}
