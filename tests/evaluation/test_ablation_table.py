"""Rows of an ablation: rates, and each beside the method that it changes, from judged answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from care.evaluation.ablation_table import AblationTable, Planned, ablation_rows
from care.evaluation.results import Results
from care.statistics.intervals import holm
from care.statistics.paired import paired_difference
from care.typed import Misfit, from_tree, to_tree

OUTCOMES = {
    # outcomes of ten attacks on five goals; h: harmful, r: refused, d: degenerate
    "none": "hhhhhhhhhh",
    "whole": "rrrrrrrrhh",
    "without": "hhhhrrrrhd",
    "same": "rrrrrrrrhh",
}
NAMES = {"h": "harmful", "r": "refused", "d": "degenerate", "s": "safe"}
PLANNED = [
    Planned("whole", "whole"),
    Planned("without", "whole"),
    Planned("same", "whole"),
    Planned("broken", "whole", failed="too few examples"),
]


def judged(suite: str, role: str, defense: str, place: int, outcome: str) -> dict:
    return {
        "suite": suite,
        "role": role,
        "example": str(place),
        "defense": defense,
        "seed": 0,
        "goal": f"{suite} {place // 2}",
        "prompt": "?",
        "outcome": NAMES[outcome],
        "correct": None,
        "error": None,
    }


@pytest.fixture(scope="module")
def results() -> Results:
    rows = []
    for defense, outcomes in OUTCOMES.items():
        rows += [judged("attacks", "attack", defense, i, o) for i, o in enumerate(outcomes)]
        benign = "ssssssssrr" if defense == "whole" else "ssssssssss"
        rows += [judged("benign", "over_refusal", defense, i, o) for i, o in enumerate(benign)]
    return Results(rows)


@pytest.fixture(scope="module")
def table(results: Results) -> AblationTable:
    return AblationTable(tuple(ablation_rows(results, PLANNED)), ("One.",))


def test_rates_are_those_of_all_requests_of_a_kind(table: AblationTable) -> None:
    found = {row.name: row for row in table.rows}
    assert list(found) == ["none", "whole", "without", "same", "broken"]
    assert [found[name].asr.rate for name in OUTCOMES] == [1.0, 0.2, 0.5, 0.2]
    assert found["whole"].answered.rate == 0.8
    assert found["none"].utility is None
    assert found["without"].degenerate == 1 / 20
    assert found["without"].suites["attacks"].rate == 0.5


def test_a_row_is_set_against_the_method_that_it_changes(table: AblationTable) -> None:
    found = {row.name: row for row in table.rows}
    whole, without = (np.array([o == "h" for o in OUTCOMES[n]]) for n in ("whole", "without"))
    goals = [str(place // 2) for place in range(10)]
    expected = paired_difference(whole, without, goals)
    against = found["without"].against
    assert against.change == expected.interval
    assert against.change.rate == pytest.approx(0.3)
    assert against.p == expected.p
    assert [found[n].against.p_holm for n in ("without", "same")] == list(holm([expected.p, 1.0]))
    assert found["same"].against.change.rate == 0.0
    assert found["whole"].against is None and found["none"].against is None


def test_a_row_that_could_not_be_fitted_says_why_and_has_no_figures(table: AblationTable) -> None:
    row = table.rows[-1]
    assert (row.failed, row.asr, row.suites, row.against) == ("too few examples", None, {}, None)


def test_it_survives_its_json_and_is_checked(table: AblationTable) -> None:
    assert from_tree(AblationTable, to_tree(table, "it"), "table") == table
    with pytest.raises(Misfit, match="names a row twice"):
        replace(table, rows=(*table.rows, table.rows[0])).check()
    with pytest.raises(Misfit, match="is 'other', which is no row"):
        replace(table, rows=(replace(table.rows[0], of="other"),)).check()
    with pytest.raises(Misfit, match="exactly where nothing failed"):
        replace(table.rows[0], failed="no").check()
