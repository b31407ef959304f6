"""What a search may change of each preset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from care.defenses.repair.presets import PRESETS, Preset
from care.defenses.repair.searched import searched, with_options

UNWATCHED = replace(PRESETS["corrected"], monitors=None)


@pytest.mark.parametrize(
    ("preset", "config", "names"),
    [
        ("paper", PRESETS["paper"], {"strength", "beta", "rank", "tokens"}),
        ("official", PRESETS["official"], {"strength", "beta", "rank", "tokens"}),
        ("corrected", PRESETS["corrected"], {"strength", "beta", "false_alarms"}),
        ("corrected", UNWATCHED, {"strength", "beta", "quantile", "ramp"}),
    ],
)
def test_the_presets_own_values_come_first_and_every_value_changes_it(
    preset: Preset, config, names: set[str]
) -> None:
    values = searched(preset, config)
    assert set(values) == names
    own = {name: part[0] for name, part in values.items()}
    assert with_options(config, own) == config
    for name, part in values.items():
        assert len(set(part)) == len(part) >= 2
        for value in part[1:]:
            assert with_options(config, own | {name: value}) != config, (name, value)


def test_options_go_where_they_belong() -> None:
    own = {"strength": 2.0, "beta": 0.5}
    paper = with_options(PRESETS["paper"], own | {"rank": 4, "tokens": 8.0})
    assert (paper.strength, paper.beta, paper.subspace.rank) == (2.0, 0.5, 4)
    assert paper.attribution is not None
    assert (paper.attribution.visual_share, paper.attribution.text_share) == (1.0, 1.0)
    watched = with_options(PRESETS["corrected"], own | {"false_alarms": 0.02, "layers": (3,)})
    assert watched.monitors is not None and watched.monitors.false_alarms == 0.02
    assert watched.gate == PRESETS["corrected"].gate
    gated = with_options(UNWATCHED, own | {"quantile": 0.9, "ramp": 0.25})
    assert gated.gate is not None and (gated.gate.quantile, gated.gate.ramp) == (0.9, 0.25)
