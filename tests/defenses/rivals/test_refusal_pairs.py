"""Refusal pairs: the loss against likelihoods, and what training on it does."""

from __future__ import annotations

import numpy as np
import pytest

from care.defenses.material import Material
from care.defenses.rivals.refusal_pairs import RefusalPairs, surprise
from kit import fits

NO, YES = "I'm sorry, but no.", "To do it, you'll need"


def material():
    return Material(
        tuple((e, YES) for e in fits.asked("a", 3, "malicious", True, 0)),
        tuple((e, NO) for e in fits.asked("b", 2, "malicious", False, 0)),
        tuple((e, YES) for e in fits.asked("c", 3, "benign", False, 0)),
    )


def test_the_loss_is_the_mean_surprise_of_a_token(vlm):
    pairs = [*material().complied[:2], (material().refused[0][0], NO)]
    score = vlm.score([e for e, _ in pairs], [said for _, said in pairs])
    expected = -score.logprob.sum() / score.tokens.sum()
    found = surprise(vlm, pairs)
    assert found.item() == pytest.approx(expected, rel=1e-5) and found.requires_grad


def test_attacks_are_refused_and_benign_answers_kept(vlm):
    told = material()
    attacks, benign = ([e for e, _ in part] for part in (told.complied, told.answered))

    def likely(defense, examples, answer):
        with defense.applied(vlm):
            return vlm.score(examples, [answer] * len(examples)).mean.mean()

    options = {"steps": 12, "rate": 1e-2, "rank": 4, "alpha": 8.0, "batch_size": 4}
    kept, bare = (
        RefusalPairs.fit(vlm, attacks, benign, material=told, kept=kept, **options)
        for kept in (1.0, 0.0)
    )
    for defense in (kept, bare):
        assert likely(defense, attacks, NO) > likely(defense.with_strength(0), attacks, NO) + 1
    assert likely(kept, benign, YES) > likely(bare, benign, YES) + 0.5
    again = RefusalPairs.fit(vlm, attacks, benign, material=told, **options)
    np.testing.assert_array_equal(again.up, kept.up)
    assert again.digest() == kept.digest() != bare.digest()
