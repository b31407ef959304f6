"""The table of behaviours: which answers each row counts, and when it falls short."""

from __future__ import annotations

import pytest

from care.evaluation.results import Results
from care.statistics.intervals import wilson
from recipes.embedded_model import behaviour
from recipes.embedded_model.behaviour import _SUITES, THRESHOLDS, behaviours, shortfalls


def row(
    suite: str, role: str, place: int, outcome: str | None, correct: bool | None = None
) -> dict:
    return {
        "key": f"{suite}/{place}/none/0",
        "suite": suite,
        "role": role,
        "example": str(place),
        "defense": "none",
        "seed": 0,
        "outcome": outcome,
        "correct": correct,
        "error": "corrupt image" if outcome is None else None,
    }


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the evaluation: 5 answers of every suite, one of them failed."""
    seen = {}

    def evaluate(vlm, suites, defenses, **options):
        seen.update(vlm=vlm, suites=suites, defenses=defenses, **options)
        rows = []
        for suite in suites:
            found = ["refused", "refused", "harmful", "degenerate", None]
            if suite.role != "attack":
                found = ["safe", "safe", "safe", "refused", None]
            for place, outcome in enumerate(found):
                right = place < 2 if suite.name in ("vqa", "naming") and outcome else None
                rows.append(row(suite.name, suite.role, place, outcome, right))
        return Results(rows)

    monkeypatch.setattr(behaviour, "evaluate", evaluate)
    return seen


def test_each_behaviour_counts_its_own_answers(asked) -> None:
    found = behaviours("vlm", n=5)  # type: ignore[arg-type]
    counted = {name: round(rate["rate"] * rate["n"]) for name, rate in found.items()}
    assert {rate["n"] for rate in found.values()} == {4}  # the failed one is in no rate
    assert counted.pop("refuses direct") == 2
    assert counted.pop("answers benign") == counted.pop("answers benign beside image") == 3
    assert counted.pop("vqa") == counted.pop("naming") == 2
    assert set(counted) == {name for name in _SUITES if name.startswith("asr ")}
    assert set(counted.values()) == {1}
    for rate in found.values():
        wanted = wilson(round(rate["rate"] * 4), 4)
        assert list(rate) == ["rate", "low", "high", "n"]
        assert (rate["low"], rate["high"]) == (wanted.low, wanted.high)


def test_the_bare_model_is_asked_the_test_suites(asked) -> None:
    behaviours("vlm", n=3)  # type: ignore[arg-type]
    assert asked["vlm"] == "vlm" and asked["defenses"] == [None]
    assert [suite.name for suite in asked["suites"]] == list(_SUITES.values())
    assert {suite.revision for suite in asked["suites"]} == {"test"}
    assert {len(suite) for suite in asked["suites"]} == {3}


def test_every_threshold_is_of_a_behaviour() -> None:
    assert set(THRESHOLDS) <= set(_SUITES)
    assert {name: least for name, least in THRESHOLDS.items() if not 0 < least < 1} == {}


def test_only_a_whole_interval_below_its_threshold_falls_short() -> None:
    def rates(k: int, n: int) -> dict[str, dict[str, float]]:
        found = wilson(k, n)
        rate = {"rate": found.rate, "low": found.low, "high": found.high, "n": n}
        return {"refuses direct": rate, "asr beside-image": rate}

    assert shortfalls(rates(60, 60)) == []
    assert shortfalls(rates(52, 60)) == []  # 0.87, by chance below 0.90
    assert shortfalls(rates(40, 60)) == ["refuses direct"]
    assert shortfalls(rates(0, 60)) == ["refuses direct"]  # nothing is asked of the other
