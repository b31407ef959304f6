"""Separability against closed forms on synthetic classes."""

import numpy as np
import pytest

from care.diagnosis.separability import separability
from care.errors import FitError


def _classes(
    gap: float, n: int = 300, width: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    malicious, benign = rng.standard_normal((n, width)), rng.standard_normal((n, width))
    malicious[:, 0] += gap
    return malicious, benign


def test_isotropic_classes_have_the_known_distance() -> None:
    result = separability(*_classes(5.0, n=1200))
    assert result.mahalanobis == pytest.approx(5.0, rel=0.05)
    # The mean length of a standard normal of width 8 is close to √7.5.
    assert result.class_separation == pytest.approx(5.0 / np.sqrt(7.5), rel=0.05)
    assert result.silhouette > 0.3


def test_everything_grows_with_the_gap() -> None:
    near, far = separability(*_classes(1.0)), separability(*_classes(6.0))
    assert all(low < high for low, high in zip(near, far, strict=True))
    assert separability(*_classes(0.0)).silhouette == pytest.approx(0.0, abs=0.02)


def test_mahalanobis_sees_through_a_noisy_channel() -> None:
    malicious, benign = _classes(3.0)
    malicious[:, 7] *= 50.0
    benign[:, 7] *= 50.0
    result = separability(malicious, benign)
    assert result.silhouette < 0.05
    assert result.mahalanobis > 0.5


def test_few_rows_and_many_rows_agree_at_the_switch() -> None:
    malicious, benign = _classes(4.0, n=30, width=61)
    below = separability(malicious, benign)
    # One more constant channel changes nothing but the shrinkage target, and little of that.
    above = separability(malicious[:, :60], benign[:, :60])
    assert below.mahalanobis == pytest.approx(above.mahalanobis, rel=0.1)


def test_invariant_to_translation_scale_and_order() -> None:
    malicious, benign = _classes(2.0, n=40, width=100)
    plain = separability(malicious, benign)
    np.testing.assert_allclose(separability(3 * malicious + 9, 3 * benign + 9), plain, rtol=1e-8)
    np.testing.assert_allclose(separability(benign[::-1], malicious), plain, rtol=1e-8)


def test_bad_input() -> None:
    rows = np.ones((3, 4))
    with pytest.raises(FitError, match="at least 2 rows"):
        separability(rows[:1], rows)
    with pytest.raises(FitError, match="one width"):
        separability(rows, np.ones((3, 5)))
    with pytest.raises(FitError, match="all equal"):
        separability(rows, rows)
    with pytest.raises(FitError, match="NaN"):
        separability(np.full((3, 4), np.nan), rows)
