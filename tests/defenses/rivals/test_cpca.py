"""Contrastive PCA, where its eigenvectors are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from care.defenses.rivals.cpca import ContrastivePca, contrasted
from care.errors import UsageError
from kit import fits


@pytest.mark.parametrize(("contrast", "axis"), [(0.1, 0), (10.0, 1)])
def test_the_contrast_decides_which_variance_counts(contrast, axis):
    """Variances 9 and 4 of attacks, 4 and 0.04 of others: 9 − 4 c against 4 − 0.04 c."""
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = contrasted(signs * [3, 2], signs * [2, 0.2], 1, contrast)
    assert abs(found[0, axis]) == pytest.approx(1)


def test_a_shifted_mean_counts():
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = contrasted(signs + np.array([0, 5]), signs, 1, 1.0)
    assert abs(found[0, 1]) == pytest.approx(1)


def test_what_is_left_along_the_directions_is_their_mean():
    made = ContrastivePca(layers=(0,), basis=np.eye(3)[None, :1], mean=np.array([[2.0, 9.0, 9.0]]))
    moved = made.moved(torch.tensor([[[5.0, 1.0, 1.0]]]), 0)
    torch.testing.assert_close(moved, torch.tensor([[[2.0, 1.0, 1.0]]]))


def test_ranks_that_make_no_sense_are_refused(vlm):
    for rank in (0, 33):
        with pytest.raises(UsageError, match="rank must lie between 1 and 32"):
            ContrastivePca.fit(vlm, [], [], rank=rank, material=fits.material(1, 1))
