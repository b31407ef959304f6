"""FFN against attention: matched norms, paired intervals, and a claim that can fail."""

from functools import partial

import numpy as np
import pytest

from care.diagnosis.activation_means import goals_of
from care.diagnosis.component_contrast import MUCH, compare, compare_both, matched_removals
from care.diagnosis.scan import Removal, scan
from care.errors import UsageError
from care.models.sites import Site
from care.statistics.bootstrap import bootstrap_mean
from care.typed import to_tree
from kit import tiny

EXAMPLES = tiny.mixed_examples(6)
interval = partial(bootstrap_mean, groups=goals_of(EXAMPLES), n=300)


def removals(kind, how="zero"):
    return [Removal(Site(layer, kind), how) for layer in range(tiny.LAYERS)]


@pytest.mark.parametrize("how", ["zero", "resample"])
def test_scaled_ablations_remove_equally_much(vlm, how):
    ffn, mhsa = removals("ffn_out", how), removals("mhsa_out", how)
    # One batch: without donors each example takes from its neighbour.
    run = partial(scan, vlm, EXAMPLES[1::2] if how == "resample" else EXAMPLES)
    found = run([*ffn, *mhsa])
    norms = found.residual_norm.reshape(2, -1)
    assert (norms > 0).all() and np.abs(norms[0] - norms[1]).min() > 1e-3
    matched = matched_removals(ffn, mhsa, norms)
    scales = np.array([removal.scale for removal in matched]).reshape(2, -1)
    assert (scales.max(axis=0) == 1).all() and (scales.min(axis=0) < 1).all()
    again = run(matched).residual_norm.reshape(2, -1)
    np.testing.assert_allclose(again[0], again[1], rtol=1e-3)
    np.testing.assert_allclose(again[0], norms.min(axis=0), rtol=1e-3)


def test_nothing_removed_matches_nothing():
    matched = matched_removals(
        removals("ffn_out")[:1], removals("mhsa_out")[:1], np.array([[0.0], [2.0]])
    )
    assert [removal.scale for removal in matched] == [1.0, 0.0]


def test_figures_by_hand():
    ffn = np.array([[1.0, -3.0, 5.0, 1, 1, 1], [-1.0, 1.0, 1.0, 1, 1, 1]])
    mhsa = np.array([[0.5, 0.5, 0.0, 0, 0, 0], [0.5, 0.5, 0.0, 0, 0, 0]])
    found = compare("mean", "kind", ffn, mhsa, np.array([[0.2, 0.4], [0.1, 0.1]]), interval)
    assert found.ffn.rate == pytest.approx((1 + 2 + 3 + 1 + 1 + 1) / 6)
    assert found.mhsa.rate == pytest.approx(1 / 6)
    assert found.difference.rate == pytest.approx(found.ffn.rate - found.mhsa.rate)
    assert found.survives and found.ffn_norm == pytest.approx(0.3)
    turned = compare("mean", "kind", mhsa, ffn, np.ones((2, 2)), interval)
    assert not turned.survives and turned.difference.high < 0
    close = compare("mean", "kind", ffn, ffn / (MUCH - 0.1), np.ones((2, 2)), interval)
    assert close.difference.low > 0 and not close.survives  # greater, but not much greater
    assert found.matched_by == "kind"
    assert set(to_tree(found)["ffn"]) == {"rate", "low", "high", "n"}
    with pytest.raises(UsageError, match=r"got effects of shape \(2, 6\) and \(1, 6\)"):
        compare("mean", "kind", ffn, mhsa[:1], np.ones((2, 2)), interval)


def test_a_component_that_only_removes_more_doesnt_survive_matching():
    """FFN effects are twenty times those of the attention because twenty times more is removed."""
    values = np.linspace(0.9, 1.1, 6)
    found = dict.fromkeys(removals("ffn_out", "mean"), (2.0 * values, 2.0))
    found |= dict.fromkeys(removals("mhsa_out", "mean"), (0.1 * values, 0.1))
    found |= {Removal((Site(0, "layer_out"),), "skip"): (values, 1.0)}
    found |= {Removal((Site(0, "ffn_out"), Site(1, "ffn_out")), "mean"): (9 * values, 1.0)}
    asked = []

    def rescan(scaled):
        from care.diagnosis.scan import Scan

        asked.extend(scaled)
        effects = np.stack([2.0 * removal.scale * values for removal in scaled])
        norms = np.array([2.0 * removal.scale for removal in scaled])
        return Scan(np.zeros(6), effects, norms, norms, np.zeros((len(norms), 6, 3)))

    by_kind, by_norm = compare_both(found, rescan, interval)
    assert by_kind.survives and by_kind.ffn_norm == pytest.approx(2)
    assert not by_norm.survives and by_norm.ffn_norm == pytest.approx(by_norm.mhsa_norm)
    assert by_norm.difference.rate == pytest.approx(0, abs=1e-9)
    assert [removal.scale for removal in asked] == [0.05] * tiny.LAYERS
    assert {removal.site.kind for removal in asked} == {"ffn_out"}
    assert by_kind.intervention == by_norm.intervention == "mean"


def test_layers_without_a_partner_are_left_out():
    values = np.ones(6)
    found = dict.fromkeys(removals("ffn_out")[1:], (values, 1.0))
    assert compare_both(found, lambda removals: pytest.fail("nothing to scan"), interval) == ()
