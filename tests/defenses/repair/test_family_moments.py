"""A fit by families in blocks: equal to that of all rows, and flat in their number."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from care.defenses.material import Sorted, load_decisions, save_decisions
from care.defenses.repair import family_moments
from care.defenses.repair.families import Told, classes_of
from care.defenses.repair.family_moments import pooled_in_blocks
from care.defenses.repair.family_subspace import Classes, pooled, unsafe_subspace
from care.defenses.repair.gate import GateConfig, crossfit
from care.models.sites import Site
from care.statistics.crossfit import FamilyRows

WEIGHTS = (0.1, 0.3, 0.05)


def classes(each: int, width: int = 12, source: np.ndarray | None = None) -> Classes:
    """Three families of attacks and two of benign requests, `each` rows of either and twice as many
    refusals; every other attack is of a modality that isn't meant."""
    rng = np.random.default_rng(3)

    def rows(names: list[str], shift: float) -> tuple[np.ndarray, list[Told]]:
        told = [Told(name, f"goal {n % 40}", "") for n in range(each) for name in names]
        moved = np.array([[shift * (1 + names.index(t.family))] for t in told])
        x = rng.standard_normal((len(told), width)) + 20 + moved * np.linspace(-1, 1, width)
        return x.astype(np.float32), told

    attacks, others = rows(["one", "two", "three"], 1.0), rows(["left out"], 9.0)
    x = np.empty((2 * len(attacks[0]), width), np.float32)
    x[::2], x[1::2] = attacks[0], np.resize(others[0], attacks[0].shape)
    refused, benign = rows(["refused"] * 2, 0.3), rows(["plain", "pictured"], -0.5)
    parts = (x, refused[0], benign[0])
    return classes_of(parts, [attacks[1], refused[1], benign[1]], range(0, len(x), 2))


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_moments, "LARGE", 0)


def test_rows_of_a_modality_are_those_that_are_meant() -> None:
    found = classes(9)
    assert list(found.attacks) == ["one", "two", "three"] and found.attacks["one"].x.max() < 30
    assert [len(rows) for rows in found.everything()] == [9, 9, 9, 18, 9, 9]


def test_moments_in_blocks_are_those_of_all_rows() -> None:
    found = classes(700)
    parts = [rows.x for rows in found.everything()]
    mean, covariance = pooled(parts, found, *WEIGHTS)
    [whole] = pooled_in_blocks(found.everything(), len(found.attacks), *WEIGHTS)
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(whole.covariance, covariance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("features", [0, 40])
def test_a_crossfit_in_blocks_is_that_of_all_rows(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, config = classes(300), GateConfig(folds=3, features=features)
    at_once = crossfit(found, config)
    monkeypatch.setattr("care.defenses.repair.gate.is_large", lambda everything: True)
    blocks = crossfit(found, config)
    scale = np.abs(at_once.filters).max()
    np.testing.assert_allclose(blocks.filters, at_once.filters, rtol=1e-10, atol=1e-10 * scale)
    np.testing.assert_allclose(blocks.mean, at_once.mean, rtol=1e-10, atol=1e-12)
    for side in ("own", "benign"):
        for one, other in zip(getattr(blocks, side), getattr(at_once, side), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("projection", ["orthogonal", "oblique"])
def test_a_subspace_in_blocks_is_that_of_all_rows(
    projection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = classes(300)
    at_once = unsafe_subspace(found, permutations=40, projection=projection)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(family_moments, "LARGE", 0)
    blocks = unsafe_subspace(found, permutations=40, projection=projection)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(blocks.eigenvalues, at_once.eigenvalues, rtol=1e-10, atol=1e-12)
    assert blocks.null_quantile == pytest.approx(at_once.null_quantile, rel=1e-10)
    assert blocks.significant == at_once.significant > 0
    assert (blocks.n_malicious, blocks.n_benign) == (at_once.n_malicious, at_once.n_benign)
    projectors = [each.basis @ each.basis.T for each in (blocks, at_once)]
    np.testing.assert_allclose(*projectors, atol=1e-6)
    np.testing.assert_allclose(blocks.mean, at_once.mean, rtol=1e-6)


def test_memory_is_flat_in_the_number_of_examples(
    in_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held of a row, its scores and places, doesn't grow with its width."""
    blocks = FamilyRows.blocks
    monkeypatch.setattr(FamilyRows, "blocks", lambda self: blocks(self, 64))  # full ones in both

    def a_row(width: int) -> float:
        peaks, counts = [], []
        for each in (150, 1050):
            found = classes(each, width)
            tracemalloc.start()
            crossfit(found, GateConfig(folds=3))
            unsafe_subspace(found, permutations=20)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            counts.append(sum(map(len, found.everything())))
        return (peaks[1] - peaks[0]) / (counts[1] - counts[0])

    narrow, wide = a_row(32), a_row(352)
    assert wide - narrow < 0.1 * 4 * (352 - 32), (narrow, wide)  # a float32 row would cost it all


def test_rows_stay_in_their_file_until_they_are_looked_at(tmp_path: Path) -> None:
    site, rng = Site(3, "ffn_out"), np.random.default_rng(0)
    rows = tuple(rng.standard_normal((n, 6)).astype(np.float32) for n in (4, 5, 0))
    save_decisions(tmp_path / "d.safetensors", Sorted((), (), (), {site: rows}))
    found = load_decisions(tmp_path / "d.safetensors")[site]
    for one, other in zip(found, rows, strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(found[0].base, np.memmap)
