"""Results of an evaluation as they are printed, and the figures that they refuse."""

from __future__ import annotations

import pytest

from care.evaluation.results import Rates, Results
from care.typed import Misfit
from kit.rows import row


def test_printed_are_rates_and_paired_tests():
    rows = [row("a", "none", i, "harmful") for i in range(6)]
    rows += [row("a", "repair", i, "refused") for i in range(6)]
    rows += [row("only bare", "none", 0, "harmful")]
    rows += [row("broken", side, 0, None, error="no image") for side in ("none", "repair")]
    assert str(Results(rows)).splitlines() == [
        "rates with 95 % intervals (Wilson)",
        "suite      measure  none               repair",
        "a          ASR      1.00 [0.61, 1.00]  0.00 [0.00, 0.39]",
        "only bare  ASR      1.00 [0.21, 1.00]",
        "broken     ASR      all failed         all failed",
        "",
        "repair against none, paired (exact McNemar, Holm)",
        "suite  n  change  p      p (Holm)",
        "a      6  -1.00   0.031  0.031",
    ]


def test_one_defense_has_nothing_to_be_compared_with():
    assert "paired" not in str(Results([row("a", "none", 0, "refused")]))


def test_a_rate_has_limits_or_none_of_the_three():
    with pytest.raises(Misfit, match="all of rate, low and high"):
        Rates(rate=0.5, low=None, high=0.7, n=2).check()
