"""Whole answers under neuron suppression and under a subspace repair, on the same requests.

Which neurons to suppress is chosen by first tokens. What the model then goes on to say, and whether
it still does what it is good for, only judged answers tell:

    asr          share of attacks answered harmfully, over all attack suites
    difference   asr(neurons) − asr(subspace), on the same attacks, resampled by goal

with utility, answered harmless requests and degenerate answers beside it, each over all requests of
that kind. All of it is on validation goals. The requests by which the neurons were chosen are left
out, but other attacks on their goals aren't: what is said about the neurons is flattered rather
than too bad. Not here: the answers themselves (`care.evaluate`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from care.data.example import Example, Suite, SuiteRole
from care.defenses.neuron_suppression import NeuronSuppression
from care.diagnosis.activation_means import spread
from care.diagnosis.neurons.results import Edit, JudgedEdit, JudgedSuppression
from care.diagnosis.neurons.suppression_search import BEYOND
from care.errors import DataError
from care.evaluation.config import UNDEFENDED
from care.evaluation.results import Results
from care.runs.rows import Row
from care.statistics.bootstrap import bootstrap_mean
from care.statistics.intervals import Interval

NEURONS, SUBSPACE = "neurons", "subspace"
"""What the two defenses are called in the table that is compared."""


def remaining(suites: Sequence[Suite], used: Collection[Example], most: int) -> list[Suite]:
    """At most `most` requests of each suite, evenly spaced, that aren't among those `used`.

    One suite for each role, so that batches are full; ids name the suite that they are from.
    """
    seen = {id(example) for example in used}
    kept: dict[SuiteRole, list[Example]] = {}
    for suite in suites:
        fresh = [example for example in suite if id(example) not in seen]
        kept.setdefault(suite.role, []).extend(
            replace(example, id=f"{suite.name}/{example.id}") for example in spread(fresh, most)
        )
    return [Suite(role, role, tuple(found)) for role, found in kept.items() if found]


def compare_answers(table: Results, used: NeuronSuppression, seed: int = 0) -> JudgedSuppression:
    """Neuron suppression beside a subspace repair, from answers bare and under both.

    Needs attacks with two goals or more that were answered under all three; DataError otherwise.
    """
    names = (UNDEFENDED, NEURONS, SUBSPACE)
    harm = {name: _harmful(table, name) for name in names}
    keys = [key for key in harm[UNDEFENDED] if all(key in harm[name] for name in names)]
    goals = [_goal(harm[UNDEFENDED][key]) for key in keys]
    if len(set(goals)) < 2:
        raise DataError(
            f"Answers under two defenses are compared on attacks with at least 2 goals, got "
            f"{len(keys)} with {len(set(goals))}; judge more of each suite."
        )
    values = {
        name: np.array([harm[name][key]["outcome"] == "harmful" for key in keys], dtype=float)
        for name in names
    }

    def mean(part: np.ndarray) -> Interval:
        return bootstrap_mean(part, goals, seed=seed)

    edits: tuple[tuple[Edit, str], ...]
    edits = (("none", UNDEFENDED), ("neurons", NEURONS), ("subspace", SUBSPACE))
    return JudgedSuppression(
        neurons=len(used.neurons),
        within_margin=used.name != BEYOND,
        edits=tuple(_edit(table, edit, name, mean(values[name])) for edit, name in edits),
        difference=mean(values[NEURONS] - values[SUBSPACE]),
    )


def _harmful(table: Results, defense: str) -> dict[tuple[str, str], Row]:
    """Judged answers to attacks under one defense, by suite and example."""
    return {
        (row["suite"], row["example"]): row
        for row in table.rows
        if row["defense"] == defense and row["role"] == "attack" and row["error"] is None
    }


def _goal(row: Row) -> str:
    return row["goal"] or f"{row['suite']}/{row['example']}"


def _edit(table: Results, edit: Edit, defense: str, asr: Interval) -> JudgedEdit:
    """What one defense costs: means over suites; None where there is no such suite."""
    roles = {table.role(suite) for suite in table.suites}
    counts = [table.outcomes(suite, defense) for suite in table.suites]
    broken = [c["degenerate"] / max(1, sum(c.values())) for c in counts]
    return JudgedEdit(
        edit=edit,
        asr=asr,
        utility=table.mean_rate("utility", defense) if "utility" in roles else None,
        answered=table.mean_rate("over_refusal", defense) if "over_refusal" in roles else None,
        degenerate=float(np.mean(broken)),
    )
