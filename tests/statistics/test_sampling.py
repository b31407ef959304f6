"""Settings of a bootstrap: checked once, and stored flat."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from care.errors import UsageError
from care.statistics.bootstrap import Resamples, bootstrap_mean, bootstrap_ratio
from care.statistics.correlation import spearman_bootstrap
from care.statistics.sampling import SamplingSpec, flat

SPEC = SamplingSpec(level=0.9, resamples=50, seed=3)


def test_intervals_are_those_of_the_functions() -> None:
    values, goals = np.arange(6.0), [*"aabbcd"]
    options = {"n": 50, "seed": 3, "level": 0.9}
    assert SPEC.mean(values, goals) == bootstrap_mean(values, goals, **options)
    squares = values**2
    ratio = bootstrap_ratio(values, squares + 1, goals, **options)
    assert SPEC.ratio(values, squares + 1, goals) == ratio
    assert SPEC.spearman(values, squares) == spearman_bootstrap(values, squares, **options)
    drawn = SPEC.drawings(goals).means(values, goals)
    np.testing.assert_array_equal(drawn, Resamples(goals, 50, 3, 0.9).means(values, goals))


def test_a_configuration_is_stored_flat() -> None:
    @dataclass(frozen=True)
    class Config:
        batch: int = 2
        sampling: SamplingSpec = field(default_factory=SamplingSpec)

    assert flat(Config()) == {"batch": 2, "level": 0.95, "resamples": 2000, "seed": 0}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"resamples": "9"}, "resamples must be a number, got '9'"),
        ({"resamples": True}, "resamples must be a number, got True"),
        ({"level": 0.0}, "level must lie between 0 and 1, got 0.0"),
        ({"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_input(wrong: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SamplingSpec(**wrong)
