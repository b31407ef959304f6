"""Power: published planning figures, simulations, and the sentence in the table."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from care.errors import UsageError
from care.statistics.intervals import mcnemar_exact
from care.statistics.power import detectable_paired, detectable_unpaired, power_note
from kit.refusals import refusals


@pytest.mark.parametrize(
    ("rate", "lows"),
    [
        (0.45, {40: 0.17, 100: 0.26, 300: 0.34}),
        (0.10, {100: 0.015, 300: 0.042, 500: 0.053, 1680: 0.072}),
    ],
)
def test_two_samples(rate, lows):
    for n, low in lows.items():
        assert detectable_unpaired(rate, n).low == pytest.approx(low, abs=0.006)


def test_eighty_examples_cannot_tell_9_from_15_percent():
    assert detectable_unpaired(0.1537, 80).low < 0.0913 < detectable_unpaired(0.1537, 440).low


def test_ends_can_be_out_of_reach():
    assert detectable_unpaired(0.02, 40).low is None
    assert detectable_unpaired(0.98, 40).high is None
    assert detectable_unpaired(0.5, 2) == (None, None)


def test_two_samples_by_simulation():
    rng = np.random.default_rng(0)
    low = detectable_unpaired(0.45, 100).low
    first, second = rng.binomial(100, 0.45, 400), rng.binomial(100, low, 400)
    found = [
        fisher_exact([[a, 100 - a], [b, 100 - b]]).pvalue < 0.05
        for a, b in zip(first, second, strict=True)
    ]
    assert 0.66 < np.mean(found) < 0.88  # Fisher's test is a little weaker than the normal one


@pytest.mark.parametrize("discordant", [0.0, 0.1, 0.3])
def test_pairs_by_simulation(discordant):
    n = 200
    least = detectable_paired(n, discordant)
    assert least is not None
    share = max(discordant, least)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        kind = rng.choice(3, n, p=[(share + least) / 2, (share - least) / 2, 1 - share])
        found.append(mcnemar_exact(kind == 0, kind == 1).p < 0.05)
    assert 0.6 < np.mean(found) < 0.92


def test_pairing_helps_and_more_examples_help():
    assert detectable_paired(80, 0.06) < 0.12
    assert detectable_paired(80, 0.1) > detectable_paired(400, 0.1)
    assert detectable_paired(80, 0.5) > detectable_paired(80, 0.1)
    assert detectable_paired(3, 0.5) is None


def test_the_sentence():
    text = power_note("mm-safetybench", 80, 0.15, 0.12)
    assert text.startswith("mm-safetybench: n = 80; two samples can tell 15.0 % from a fall to 3.1")
    assert "12.0 % of the examples changing" in text and text.endswith("points.")
    assert "no other rate at all" in power_note("x", 2, 0.5)
    assert "no paired difference" in power_note("x", 3, 0.5, 0.5)


test_wrong_use = refusals(
    (UsageError, "A rate lies", lambda: detectable_unpaired(1.5, 10)),
    (UsageError, "n >= 1", lambda: detectable_unpaired(0.5, 0)),
    (UsageError, "share of discordant pairs", lambda: detectable_paired(10, 2.0)),
    (UsageError, "power between 0 and 1", lambda: detectable_paired(10, power=1.0)),
)
