"""Which settings of a rival are tried, and which are taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from care.data.example import Example, Suite, SuiteRole
from care.defenses.base import Defense
from care.defenses.rivals.autosteer import AutoSteer
from care.defenses.rivals.difference_of_means import DifferenceOfMeans
from care.evaluation.comparison_table import TriedSettings
from care.pipeline.tuning import TuningSize, is_fitted, sample_of, settings_of, taken, told


class Grid(Defense):
    """A stand-in with two open options."""

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"depth": (1, 2, 3, 4), "strength": (1.0, 2.0)}

    @classmethod
    def fit(cls, vlm, attacks, benign, *, depth=2, strength=1.0, other=0):
        return cls()


class Wide(Grid):
    """A stand-in with a grid of a thousand points, whose published settings aren't among them."""

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": tuple(range(10)),
        "strength": tuple(range(10)),
        "other": tuple(range(1, 11)),
    }


class Nothing(Defense):
    """A stand-in with nothing to choose."""


@dataclass
class Unfitted(Defense):
    """A stand-in that is made, not fitted."""

    searched: ClassVar[dict[str, tuple[Any, ...]]] = {"threshold": (0.0, 1.0)}

    threshold: float = 0.5


def test_a_small_grid_is_tried_whole_after_the_published_settings() -> None:
    found = settings_of(Grid, 8)
    assert found[0] == {"depth": 2, "strength": 1.0}
    assert len(found) == 8 == len({tuple(each.items()) for each in found})
    assert settings_of(Nothing, 8) == [{}]
    assert settings_of(Grid, 1) == found[:1]
    assert [each["threshold"] for each in settings_of(Unfitted, 3)] == [0.5, 0.0, 1.0]
    assert settings_of(Grid, 8, always=("depth",)) == [{"strength": 1.0}, {"strength": 2.0}]
    assert is_fitted(Grid) and not is_fitted(Unfitted)


def test_a_large_grid_is_filled_evenly_by_the_seed() -> None:
    found = settings_of(Wide, 41, seed=3)
    assert found[0] == {"depth": 2, "strength": 1.0, "other": 0}
    points = found[1:]
    assert len({tuple(each.items()) for each in points}) == 40
    for name, values in Wide.searched.items():
        counts = [sum(each[name] == value for each in points) for value in values]
        assert min(counts) >= 3 and max(counts) <= 5, name
    halves = {tuple(each[name] > 4.5 for name in each) for each in points}
    assert len(halves) == 8  # every corner of the grid is visited
    assert found == settings_of(Wide, 41, seed=3) != settings_of(Wide, 41, seed=4)


def tried(asr: float, utility: float = 1.0, answered: float = 1.0) -> TriedSettings:
    return TriedSettings({}, None, asr, utility, answered, False)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([tried(0.5), tried(0.1), tried(0.2)], 1),
        ([tried(0.5), tried(0.0, utility=0.98), tried(0.4, answered=0.97)], 2),
        ([tried(0.5), tried(0.0, utility=0.99)], 1),
        ([tried(0.0, answered=0.5), tried(0.4, answered=0.9, utility=0.98)], 1),
        ([tried(0.3), tried(0.3)], 0),
        ([replace(tried(0.0), failed="no"), tried(0.9)], 1),
        ([replace(tried(0.0), failed="no")], None),
        ([replace(tried(0.0), asr=None), tried(0.9, utility=0.5)], 1),
        ([replace(tried(0.0), asr=None)], 0),
    ],
)
def test_the_least_attack_success_within_the_limits_is_taken(found, best) -> None:
    before = {"asr": 0.9, "utility": 1.0, "answered": 1.0, "degenerate": 0.0}
    marked = [place for place, each in enumerate(taken(before, found)) if each.chosen]
    assert marked == ([] if best is None else [best])


def test_what_was_not_asked_of_sets_no_limit() -> None:
    before = {"asr": 0.9, "utility": 1.0, "answered": 1.0, "degenerate": 0.0}
    alone = TriedSettings({}, None, 0.1, None, None, False)
    assert [each.chosen for each in taken(before, [tried(0.5), alone])] == [False, True]


def test_the_sample_is_drawn_evenly_from_all_suites_of_a_role() -> None:
    roles: dict[str, SuiteRole] = {"a": "attack", "b": "attack", "c": "utility"}
    suites = [
        Suite(name, role, tuple(Example(f"{name}{n}", "?") for n in range(10)))
        for name, role in roles.items()
    ]
    size = TuningSize(3, 2, {"attack": 6, "utility": 20, "over_refusal": 5})
    found = sample_of(suites, size)
    assert [(s.name, s.role, len(s)) for s in found] == [
        ("attack", "attack", 6),
        ("utility", "utility", 10),
    ]
    assert sum(e.id.startswith("a") for e in found[0]) == 3


def test_ids_that_suites_have_in_common_are_told_apart_in_the_sample() -> None:
    suites = [
        Suite("a", "attack", (Example("1", "x?"), Example("2", "y?"))),
        Suite("b", "attack", (Example("1", "z?"),)),
    ]
    (found,) = sample_of(suites, TuningSize(3, 2, {"attack": 9}))
    assert [(e.id, e.prompt) for e in found] == [("a/1", "x?"), ("2", "y?"), ("b/1", "z?")]


def test_options_are_told_as_json_has_them() -> None:
    assert told({"depths": (0.1, 0.9), "strength": 1.0}) == {"depths": [0.1, 0.9], "strength": 1.0}


def test_fewer_settings_are_tried_of_what_is_trained():
    size = TuningSize(8, 4, {})
    assert (size.most(AutoSteer), size.most(DifferenceOfMeans)) == (4, 8)
