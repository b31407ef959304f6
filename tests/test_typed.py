"""Results declared once: plain JSON from a value, and a checked value from plain JSON."""

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.errors import ArtefactError, DataError, UsageError
from care.models.sites import Site
from care.statistics.correlation import Correlation
from care.statistics.intervals import Interval
from care.typed import (
    HIDDEN,
    WHEN_SET,
    Change,
    Count,
    Length,
    Misfit,
    Pattern,
    Positive,
    Range,
    Share,
    from_tree,
    in_order,
    inside,
    same_count,
    show,
    to_tree,
)


@dataclass(frozen=True)
class Rate:
    """A share with its interval."""

    rate: Share
    """The share."""
    low: Share
    """Lower limit."""
    high: Share
    """Upper limit."""
    p: Annotated[Share | None, WHEN_SET] = None
    """p of a test."""

    def check(self) -> None:
        inside(self)


@dataclass(frozen=True)
class Ranks:
    """Of everything that a hint can be."""

    site: Site
    """Written as text."""
    kind: Literal["seed", "half"]
    """One of two."""
    n: Positive
    """How many."""
    size: tuple[Count, Count]
    """Rows and columns."""
    rates: tuple[Rate, ...]
    """Any number."""
    by_name: Mapping[str, Rate]
    """Under any name."""
    scores: list[float]
    """Any numbers."""
    pair: Annotated[list[Change], Length(2)]
    """Exactly two."""
    code: Annotated[str, Pattern("[a-z]+", "small letters")]
    """Of one form."""
    sure: bool
    """Yes or no."""
    best: Rate | None
    """Null where there is none."""
    free: dict[str, Any]
    """Whatever it is."""
    counts: dict[Literal["yes", "no"], Count]
    """One for each."""
    change: Annotated[Interval, Range(-1, 1)]
    """Its figures are bounded, its n isn't."""
    note: str = ""
    """May be missing."""
    values: Annotated[np.ndarray | None, HIDDEN] = field(default=None, compare=False)
    """Never in the JSON."""

    def check(self) -> None:
        same_count(len(self.scores), self.n, "scores", "n")
        for i, rate in enumerate(self.rates):
            if rate.rate > self.scores[i]:
                raise Misfit(f"rates[{i}].rate", f"is {rate.rate:g}, above its score")


RANKS = Ranks(
    site=Site(16, "ffn_out"),
    kind="half",
    n=2,
    size=(2, 3),
    rates=(Rate(0.5, 0.4, 0.6),),
    by_name={"a b": Rate(0.5, 0.4, 0.6, 0.01)},
    scores=[1.0, 2],
    pair=[-1.0, 1.0],
    code="abc",
    sure=True,
    best=None,
    free={"anything": [1, None, "x"]},
    counts={"yes": 1, "no": 2},
    change=Interval(-0.5, -1.0, 0.5, 9),
    values=np.ones(3),
)
TREE = {
    "site": "16.ffn_out",
    "kind": "half",
    "n": 2,
    "size": [2, 3],
    "rates": [{"rate": 0.5, "low": 0.4, "high": 0.6}],
    "by_name": {"a b": {"rate": 0.5, "low": 0.4, "high": 0.6, "p": 0.01}},
    "scores": [1.0, 2],
    "pair": [-1.0, 1.0],
    "code": "abc",
    "sure": True,
    "best": None,
    "free": {"anything": [1, None, "x"]},
    "counts": {"yes": 1, "no": 2},
    "change": {"rate": -0.5, "low": -1.0, "high": 0.5, "n": 9},
    "note": "",
}


def test_a_value_is_its_fields_in_their_order() -> None:
    tree = to_tree(RANKS)
    assert tree == TREE and list(tree) == list(TREE)


def test_a_tree_gives_the_value_back() -> None:
    assert from_tree(Ranks, TREE) == RANKS
    assert from_tree(Ranks, TREE).size == (2, 3)
    without = {key: value for key, value in TREE.items() if key != "note"}
    assert from_tree(Ranks, without) == RANKS


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_every_value_comes_back_bit_for_bit(one: float, two: float, three: float) -> None:
    low, rate, high = sorted((one, two, three))
    assert from_tree(Rate, to_tree(Rate(rate, low, high))) == Rate(rate, low, high)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": True}, "`n` is True; it must be an integer"),
        ({"n": 2.0}, "`n` is 2.0; it must be an integer"),
        ({"n": 0}, "`n` is 0; it must be at least 1"),
        ({"n": 3}, "`scores` counts 2, but n says 3"),
        ({"sure": 1}, "`sure` is 1; it must be true or false"),
        ({"kind": "third"}, "`kind` is 'third'; use one of 'seed', 'half'"),
        ({"site": "16"}, "`site` is '16': '16' is not a site; write LAYER.KIND, for"),
        ({"site": 16}, "`site` is 16; it must be a string"),
        ({"size": [1]}, "`size` has 1 items; it must have 2"),
        ({"size": "12"}, "`size` is '12'; it must be a list"),
        ({"size": [1, -1]}, "`size[1]` is -1; it must be at least 0"),
        ({"pair": [1.0]}, "`pair` has 1 items; it must have 2"),
        ({"code": "abc1"}, "`code` is 'abc1'; it must be small letters"),
        ({"scores": [1, "2"]}, "`scores[1]` is '2'; it must be a number"),
        ({"scores": [1, math.nan]}, "`scores[1]` is nan; it must be a number"),
        ({"scores": [1, math.inf]}, "`scores[1]` is inf; it must be a number"),
        ({"best": []}, "`best` is []; it must be an object"),
        ({"best": {"rate": 0.5}}, "`best.high` is missing"),
        ({"best": {"rate": 0.5, "low": 0, "high": 1.1}}, "`best.high` is 1.1; it must lie between"),
        ({"by_name": {"a b": {}}}, "`by_name['a b'].high` is missing"),
        ({"by_name": {"a": {"rate": 1, "low": 0, "high": 0}}}, "`by_name.a` has rate 1 outside"),
        ({"rates": [{"rate": 1, "low": 0, "high": 1}], "scores": [0.5, 1]}, "`rates[0].rate` is 1"),
        ({"nott": ""}, "`nott` isn't a key of the schema; did you mean 'note'?"),
        ({"zzz": ""}, "`zzz` isn't a key of the schema; known: site, kind, n"),
        ({"values": [1]}, "`values` isn't a key of the schema"),
        ({"free": []}, "`free` is []; it must be an object"),
        ({"counts": {"yes": 1}}, "`counts.no` is missing"),
        ({"counts": {"yes": 1, "no": 1, "so": 1}}, "`counts.so` isn't a key of the schema; known"),
        ({"counts": {"yes": 1, "no": -1}}, "`counts.no` is -1; it must be at least 0"),
        ({"change": {"rate": 2, "low": 0, "high": 1}}, "`change.rate` is 2; it must lie between"),
        ({"change": {"rate": 1, "low": 0, "high": 0}}, "`change` has rate 1 outside its interval"),
    ],
    ids=str,
)
def test_the_key_that_breaks_the_type_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        from_tree(Ranks, TREE | change)
    assert words in str(caught.value)
    assert str(caught.value).startswith("The data can't be used: `")


def test_what_the_data_are_and_the_error_are_the_callers() -> None:
    with pytest.raises(ArtefactError, match=r"^The repair can't be used: `parts\[0\].high` is m"):
        from_tree(Rate, {}, "parts[0]", what="The repair", error=ArtefactError)
    with pytest.raises(ArtefactError, match=r"^The repair can't be used: `the tree` is 3; it must"):
        from_tree(Rate, 3, what="The repair", error=ArtefactError)
    with pytest.raises(DataError, match=r"^R can't be used: `low` is missing; fetch it again\.$"):
        from_tree(Rate, {"rate": 0.5, "high": 1.0}, what="R", todo="fetch it again")


def test_later_keys_are_passed_over_unless_strict() -> None:
    tree = to_tree(Rate(0.5, 0.4, 0.6)) | {"novelty": 1}
    assert from_tree(Rate, tree, strict=False) == Rate(0.5, 0.4, 0.6)


def test_rounding_may_pass_a_bound_by_a_little() -> None:
    assert from_tree(Rate, {"rate": 1 + 1e-9, "low": 0.1, "high": 1}).rate == 1 + 1e-9


def test_numpy_becomes_plain() -> None:
    value = {"a": np.float32(2.5), "b": np.bool_(True), "c": np.arange(4).reshape(2, 2), "d": (1,)}
    assert to_tree(value) == {"a": 2.5, "b": True, "c": [[0, 1], [2, 3]], "d": [1]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1.0, math.inf]}, r"`a\[1\]` is inf, which JSON can't hold"),
        ({"a": np.array([math.nan])}, r"`a\[0\]` is nan, which JSON can't hold"),
        ({"a b": {1: 2}}, r"`\['a b'\]` has the key 1 of type int; use strings"),
        ({"a": {""}}, r"`a` has the type set; use plain JSON values"),
        (Rate(math.nan, 0, 1), "`rate` is nan"),
    ],
    ids=str,
)
def test_what_json_cannot_hold_is_refused(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_tree(value)


def test_a_type_that_refuses_a_value_by_itself_is_told_by_its_path() -> None:
    @dataclass(frozen=True)
    class Config:
        level: float

        def __post_init__(self) -> None:
            if not self.level < 1:
                raise UsageError("level must be below 1.")

    assert from_tree(Config, {"level": 0.5}) == Config(0.5)
    with pytest.raises(DataError, match=r"`config` doesn't fit: level must be below 1\.$"):
        from_tree(Config, {"level": 2}, "config")


def test_a_band_has_its_ends_in_order() -> None:
    in_order(Rate(0.9, 0.1, 0.5))
    with pytest.raises(Misfit, match=r"`x` has low 0\.5 above high 0\.1"):
        in_order(Rate(0.2, 0.5, 0.1), "x")


def test_figures_that_are_not_counted_are_written_without_n() -> None:
    assert to_tree(Interval(0.5, 0.4, 0.6)) == {"rate": 0.5, "low": 0.4, "high": 0.6}
    rho = Correlation.of(Interval(0.5, 0.4, 0.6, 30))
    assert to_tree(rho) == {"rho": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    assert from_tree(Correlation, {"rho": 0.5, "low": 0.6, "high": 0.7}).n == 0
    with pytest.raises(DataError, match=r"`x` has low 0\.8 above high 0\.7"):
        from_tree(Correlation, {"rho": 0.5, "low": 0.8, "high": 0.7}, "x")


def test_long_values_are_cut() -> None:
    assert show("a" * 99) == "'" + "a" * 56 + "..."


def test_it_is_light() -> None:
    heavy = "{'torch', 'numpy', 'care.runs.files'}"
    code = f"import sys, care.typed; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
