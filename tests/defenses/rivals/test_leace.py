"""LEACE: against its formula with matrices, and what it guarantees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from care.defenses.rivals.leace import LEAST_SHRINKAGE, Leace, erasing
from care.errors import FitError
from care.statistics.moments import Moments, ledoit_wolf
from kit import fits


def labelled(width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    complied, *others = fits.three_classes(width, seed)
    rows = np.concatenate([complied, *others])
    return rows, np.arange(len(rows)) < len(complied)


def erased(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    writing, reading = erasing(rows, labels)
    made = Leace(
        layers=(0,), writing=writing[None], reading=reading[None], mean=rows.mean(axis=0)[None]
    )
    return made.moved(torch.from_numpy(rows[None]).float(), 0)[0].double().numpy()


@pytest.mark.parametrize("width", [4, 40])
def test_nothing_linear_tells_the_classes_any_more(width):
    """Equal means of the classes: no linear classifier beats a constant."""
    rows, labels = labelled(width)
    found = erased(rows, labels)
    assert np.linalg.norm(rows[labels].mean(axis=0) - rows[~labels].mean(axis=0)) > 2
    np.testing.assert_allclose(found[labels].mean(axis=0), found[~labels].mean(axis=0), atol=1e-5)


def test_the_edit_is_that_of_the_paper_with_whitening():
    rows, labels = labelled(4)
    moments = Moments(4).fit(rows)
    share = max(ledoit_wolf(moments.spread()), LEAST_SHRINKAGE)
    covariance = moments.covariance()
    covariance = (1 - share) * covariance + share * np.trace(covariance) / 4 * np.eye(4)
    whitening = np.linalg.inv(np.real(sqrtm(covariance)))
    centred = rows - rows.mean(axis=0)
    u = whitening @ (centred.T @ (labels - labels.mean()))
    projection = np.outer(u, u) / (u @ u)
    expected = rows - centred @ (np.linalg.inv(whitening) @ projection @ whitening).T
    np.testing.assert_allclose(erased(rows, labels), expected, atol=1e-5)


def test_classes_with_one_mean_are_refused():
    with pytest.raises(FitError, match="nothing to erase"):
        erasing(np.ones((4, 2)), np.array([True, True, False, False]))
