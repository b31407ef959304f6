"""κ and its interval, and lists of labels against one another."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from care.errors import UsageError
from care.statistics.agreement import between_judges, kappa_interval


def test_kappa_is_the_known_one_for_several_labels():
    rng = np.random.default_rng(0)
    first = rng.choice(["harmful", "refused", "safe"], 60)
    second = np.where(rng.random(60) < 0.7, first, "safe")
    found = kappa_interval(list(first), list(second))
    assert found.rate == pytest.approx(cohen_kappa_score(first, second))
    assert found.low < found.rate < found.high and found.n == 60


def test_the_interval_covers_and_knows_goals():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        truth = rng.random(80) < 0.5
        said = np.where(rng.random(80) < 0.9, truth, ~truth)  # κ = 0.8 in the long run
        found = kappa_interval(list(truth), list(said), seed=seed)
        hits += found.low <= 0.8 <= found.high
    assert hits >= 88
    alone = kappa_interval(list(truth), list(said))
    doubled = kappa_interval(list(truth) * 4, list(said) * 4, [str(i) for i in range(80)] * 4)
    assert doubled.high - doubled.low == pytest.approx(alone.high - alone.low, rel=0.2)


def test_kappa_of_a_constant_is_undefined():
    assert kappa_interval(["safe"] * 5, ["safe"] * 5) is None
    assert kappa_interval(["safe"] * 5, ["harmful"] * 5).rate == 0.0
    with pytest.raises(UsageError, match="one length"):
        kappa_interval(["safe"], [])


def test_every_two_judges_on_what_both_judged():
    columns = {
        "a": {"1": "harmful", "2": "not", "3": "not"},
        "b": {"1": "harmful", "2": "harmful"},
        "c": {"9": "not"},
    }
    (found,) = between_judges(columns, {str(i): f"goal {i}" for i in range(10)})
    assert found.judges == ("a", "b") and found.n == 2 and found.agreement == 0.5
