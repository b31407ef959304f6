"""The discriminant of monitors: closed forms, cross-fitting, and what it refuses."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from care.defenses.monitors.detector import Detector, DetectorFit
from care.errors import FitError, UsageError
from care.statistics.crossfit import FamilyRows, folds_of


def rows(seed: int, n: int = 40, shift: float = 0.0, width: int = 5) -> FamilyRows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * np.arange(1, width + 1)
    x[:, 0] += shift
    return FamilyRows(x, [f"goal {seed} {place // 2}" for place in range(n)])


def test_scores_are_zero_at_the_harmless_mean_and_one_at_the_harmful() -> None:
    harmful = {"a": rows(1, shift=3), "b": rows(2, shift=4)}
    harmless = {"c": rows(3), "d": rows(4)}
    detector = DetectorFit(harmful, harmless).detector()
    centres = [
        np.mean([part.mean for part in side.values()], axis=0)[None] for side in (harmful, harmless)
    ]
    assert_allclose(detector(centres[0]), 1, atol=1e-5)
    assert_allclose(detector(centres[1]), 0, atol=1e-5)


def test_the_direction_is_fishers() -> None:
    harmful, harmless = {"a": rows(1, shift=3)}, {"b": rows(2)}
    detector = DetectorFit(harmful, harmless, 1e-12).detector()
    within = sum(np.cov(part["ab"[n]].x.T, ddof=0) for n, part in enumerate((harmful, harmless)))
    gap = harmful["a"].mean - harmless["b"].mean
    wanted = np.linalg.solve(within / 2, gap)
    assert_allclose(detector.direction, wanted / (gap @ wanted), rtol=1e-4, atol=1e-6)


def test_all_weight_on_the_diagonal_compares_coordinates_by_their_own_spread() -> None:
    harmful, harmless = {"a": rows(1, shift=3)}, {"b": rows(2)}
    detector = DetectorFit(harmful, harmless, 1).detector()
    spread = (harmful["a"].x.var(axis=0) + harmless["b"].x.var(axis=0)) / 2
    gap = harmful["a"].mean - harmless["b"].mean
    assert_allclose(detector.direction, gap / spread / (gap @ (gap / spread)), rtol=1e-4)


def test_a_family_counts_the_same_however_many_rows_it_has() -> None:
    small, large = rows(1, n=20, shift=3), rows(2, n=20, shift=5)
    doubled = FamilyRows(np.tile(large.x, (9, 1)), list(large.groups) * 9)
    once = DetectorFit({"a": small, "b": large}, {"c": rows(3)}).detector()
    often = DetectorFit({"a": small, "b": doubled}, {"c": rows(3)}).detector()
    assert_allclose(once.direction, often.direction, rtol=1e-5, atol=1e-7)


@given(scale=st.floats(0.1, 10), move=st.floats(-5, 5))
def test_scores_do_not_depend_on_the_units_or_the_origin(scale: float, move: float) -> None:
    harmful, harmless = {"a": rows(1, shift=3)}, {"b": rows(2)}
    moved = [
        {name: FamilyRows(part.x * scale + move, part.groups) for name, part in side.items()}
        for side in (harmful, harmless)
    ]
    before = DetectorFit(harmful, harmless).detector()(harmful["a"].x)
    assert_allclose(
        DetectorFit(*moved).detector()(harmful["a"].x * scale + move), before, rtol=1e-3, atol=1e-3
    )


def test_weights_move_the_harmless_mean_to_the_kinds_that_have_them() -> None:
    harmful, harmless = {"a": rows(1, shift=3)}, {"b": rows(2), "c": rows(3, shift=1)}
    detector = DetectorFit(harmful, harmless).detector({"b": 3, "c": 1})
    centre = 0.75 * harmless["b"].mean + 0.25 * harmless["c"].mean
    assert_allclose(detector.mean, centre, rtol=1e-5, atol=1e-6)
    alone = DetectorFit(harmful, {"b": harmless["b"]}).detector()
    heavy = DetectorFit(harmful, harmless).detector({"b": 1, "c": 0})
    assert_allclose(heavy.direction, alone.direction, rtol=1e-4, atol=1e-6)


def test_a_kind_that_is_hard_to_tell_apart_weighs_more() -> None:
    harmful = {"a": rows(1, shift=4)}
    harmless = {"easy": rows(2), "easier": rows(4, shift=-1), "hard": rows(3, shift=2.5)}
    weights = DetectorFit(harmful, harmless).hardness(0.05)
    assert weights["hard"] > 5 * max(weights["easy"], weights["easier"]) > 0
    assert sum(weights.values()) == pytest.approx(3 * 1.1)  # 0.1 each, and shares that mean 1


def test_a_row_is_scored_by_a_detector_that_has_not_seen_its_goal() -> None:
    harmful, harmless = {"a": rows(1, shift=1, width=30)}, {"b": rows(2, width=30)}
    seen = DetectorFit(harmful, harmless, 0.01).detector()(harmful["a"].x)
    unseen = DetectorFit(harmful, harmless, 0.01).crossfit()["a"]
    assert seen.mean() == pytest.approx(1, abs=1e-4)
    assert unseen.mean() < 0.9  # what it has learnt of these rows by heart is gone

    memory = {"a": FamilyRows(harmful["a"].x.copy(), harmful["a"].groups)}
    memory["a"].x[0] += 1e3  # its own fold must not notice
    again = DetectorFit(memory, harmless, 0.01).crossfit()["a"]
    assert_allclose(again[1], unseen[1])  # row 1 has the goal of row 0
    assert not np.allclose(again[2:], unseen[2:])


def by_family(
    harmful: Mapping[str, FamilyRows], harmless: Mapping[str, FamilyRows], weights: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """w and μ as the formula says them: the scatter of each family about its own mean."""
    total, means = 0.0, []
    for side, v in ((harmful, np.ones(len(harmful))), (harmless, np.array(weights))):
        v = v / v.sum()
        x = [part.x.astype(np.float64) for part in side.values()]
        total += sum(share * np.cov(rows.T, ddof=0) for share, rows in zip(v, x, strict=True)) / 2
        means.append(v @ [rows.mean(axis=0) for rows in x])
    within = 0.8 * total + 0.2 * np.diag(np.diag(total))
    direction = np.linalg.solve(within, means[0] - means[1])
    return direction / ((means[0] - means[1]) @ direction), means[1]


@pytest.mark.parametrize("away", [0.0, 1e3])
def test_one_product_of_all_rows_gives_what_each_family_alone_does(away: float) -> None:
    """Also where activations are far from 0 and families of unequal size."""
    harmful = {"a": rows(1, 13, 3), "b": rows(2, 150, 5)}
    harmless = {"c": rows(3, 8), "d": rows(4, 90, -1), "e": rows(5, 31)}
    sides = [
        {
            name: FamilyRows((part.x + away * (n + 1)).astype(np.float32), part.groups)
            for n, (name, part) in enumerate(side.items())
        }
        for side in (harmful, harmless)
    ]
    weights = {"c": 2.0, "d": 0.1, "e": 0.7}
    fit = DetectorFit(*sides)
    found, (direction, mean) = fit.detector(weights), by_family(*sides, list(weights.values()))
    assert_allclose(found.direction, direction, rtol=1e-6, atol=1e-6 * np.abs(direction).max())
    assert_allclose(found.mean, mean, rtol=1e-6)

    classes, scores = {**sides[0], **sides[1]}, fit.crossfit(weights)
    inside = dict(zip(classes, folds_of(list(classes.values()), 5), strict=True))
    for fold in range(5):
        kept = [
            {n: FamilyRows(part.outside(inside[n] == fold), ()) for n, part in side.items()}
            for side in sides
        ]
        direction, mean = by_family(*kept, list(weights.values()))
        for name, part in classes.items():
            own = inside[name] == fold
            wanted = (part.x[own] - mean) @ direction
            assert_allclose(scores[name][own], wanted, rtol=1e-5, atol=1e-6)


def test_too_few_rows_equal_means_and_constants_are_refused() -> None:
    few = FamilyRows(rows(1).x[:3], ["a", "b", "c"])
    with pytest.raises(FitError, match="'a' has 3 examples"):
        DetectorFit({"a": few}, {"b": rows(2)}).detector()
    with pytest.raises(FitError, match="one side is empty"):
        DetectorFit({}, {"b": rows(2)}).detector()
    with pytest.raises(FitError, match="equal means"):
        DetectorFit({"a": rows(1)}, {"b": rows(1)}).detector()
    flat = FamilyRows(np.ones((8, 5)), list("abcdefgh"))
    with pytest.raises(FitError, match="never vary"):
        DetectorFit({"a": flat}, {"b": flat}).detector()
    broken = FamilyRows(np.full((8, 5), np.nan), list("abcdefgh"))
    with pytest.raises(FitError, match="aren't finite"):
        DetectorFit({"a": broken}, {"b": rows(2)}).detector()


def test_numbers_that_do_not_fit_or_are_not_finite_make_no_detector() -> None:
    with pytest.raises(UsageError, match=r"w \(D,\) and μ \(D,\)"):
        Detector(np.ones(3, np.float32), np.ones(4, np.float32))
    with pytest.raises(UsageError, match="finite"):
        Detector(np.array([np.inf], np.float32), np.ones(1, np.float32))
