"""A small comparison: the bare model, CARE, two rivals and a control, from judged answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from care.data.example import SuiteRole
from care.evaluation.attack_scores import AttackFigure
from care.evaluation.comparison_claims import comparison_claims
from care.evaluation.comparison_studies import (
    AtStrength,
    FittedOn,
    Studies,
    UnseenFamily,
    corrected,
    merged,
    pooled_rates,
    unseen_family,
)
from care.evaluation.comparison_table import (
    CARE,
    Budget,
    ComparisonTable,
    FitCost,
    Group,
    PlannedRow,
    TriedSettings,
    comparison_rows,
)
from care.evaluation.results import Results
from care.runs.rows import Row
from care.statistics.intervals import Interval

NAMES = {"h": "harmful", "r": "refused", "d": "degenerate", "s": "safe"}
ASKED = {
    # of twenty attacks, twenty harmless requests and twenty of use: what came of them
    "none": ("h" * 20, "s" * 20, "s" * 20),
    CARE: ("h" + "r" * 19, "s" * 20, "s" * 20),
    "care, fit 2": ("hh" + "r" * 18, "s" * 19 + "r", "s" * 20),
    "careful": ("h" * 12 + "r" * 8, "s" * 20, "s" * 20),
    "harsh": ("r" * 20, "r" * 20, "s" * 20),
    "constant": ("h" * 10 + "d" * 10, "s" * 20, "s" * 10 + "d" * 10),
}
SUITES = {"pgd <b>": "attack", "harmless": "over_refusal", "use": "utility"}


def judged(suite: str, role: str, defense: str, place: int, outcome: str) -> Row:
    return {
        "suite": suite,
        "role": role,
        "example": str(place),
        "defense": defense,
        "seed": 0,
        "goal": f"{suite} {place}",
        "prompt": f"{suite} {place}?",
        "outcome": NAMES[outcome],
        "correct": None,
        "error": None,
        "alarms": [{"monitor": "request"}] if defense == CARE and place < 18 else [],
    }


def rows(names: Collection[str] = tuple(ASKED)) -> list[Row]:
    found = [judged("direct", "attack", name, 0, "h") for name in names]
    for name in names:
        parts = ASKED[name]
        for (suite, role), outcomes in zip(SUITES.items(), parts, strict=True):
            found += [judged(suite, role, name, n, o) for n, o in enumerate(outcomes)]
    return found


def cost(**more: object) -> FitCost:
    return replace(FitCost(0.0, 0.0, False, (), 1.25, 2.0, 30, 40), **more)  # pyright: ignore[reportArgumentType]


def planned(name: str, group: Group, **more: object) -> PlannedRow:
    row = PlannedRow(name, group, "Somebody 2025", None, cost())
    return replace(row, **more)  # pyright: ignore[reportArgumentType]


def adaptive(name: str, rate: float) -> tuple[AttackFigure, ...]:
    own, bare = Interval(rate, rate, rate), Interval(0.5, 0.25, 0.75)
    return (AttackFigure("pgd-32", "direct", name, bare, own),)


PLANNED = (
    planned(CARE, "care", fits=((1, "care, fit 2"),), adaptive=adaptive(CARE, 0.25)),
    planned(
        "careful",
        "rival",
        tried=(
            TriedSettings({"depth": 0.5, "strength": 1.0}, None, 0.5, 1.0, 1.0, True),
            TriedSettings({"depth": 0.5, "strength": 2.0}, "too <strong>", None, None, None, False),
        ),
        adaptive=adaptive("careful", 0.75),
    ),
    planned("harsh", "rival", cost=cost(trains=True, overhead=0.5)),
    planned("constant", "control", cost=cost(overhead=None)),
    planned("broken", "rival", failed="no picture", cost=cost(overhead=None)),
)


def table() -> ComparisonTable:
    results = Results(rows())
    made = comparison_rows(results, PLANNED)
    suites: dict[str, SuiteRole] = {name: results.role(name) for name in results.suites}
    claims = comparison_claims(made, suites)
    return ComparisonTable(suites, tuple(made), claims, ("A note.",), Budget(8, 240, "the least"))


REFITTED = {
    # of twenty attacks of a family: what came of them under fits without it
    f"{CARE}, without pgd <b>": "h" * 12 + "r" * 8,
    "careful, without pgd <b>": "h" * 13 + "r" * 7,
}


def studies() -> Studies:
    """CARE and a rival: without a family, which fails for another rival; on few; at strengths."""
    more = [
        judged("pgd <b>", "attack", n, i, o) for n, p in REFITTED.items() for i, o in enumerate(p)
    ]
    found = Results([*rows(), *more])
    families = [
        unseen_family(found, name, "pgd <b>", f"{name}, without pgd <b>")
        for name in (CARE, "careful")
    ]
    families.append(UnseenFamily("harsh", "pgd <b>", "nothing is left", None, None, None))
    counts = {"complied": 12, "refused": 16, "answered": 16}
    failed = FittedOn(CARE, 16, counts, "too <few>", None, None, None)
    many = dict.fromkeys(counts, 40)
    sizes = (failed, FittedOn(CARE, 64, many, None, **pooled_rates(found, "careful")))
    sizes += (FittedOn(CARE, 250, many, None, **pooled_rates(found, CARE)),)
    strengths = [
        AtStrength("careful", factor, 2 * factor, **pooled_rates(found, name))
        for factor, name in ((0.0, "none"), (0.25, "none"), (1.0, "careful"), (4.0, "harsh"))
    ]
    names = (CARE, "careful", "harsh")
    parts = (corrected(families), sizes, tuple(strengths))
    return merged(None, Studies(names, (), ("Made <so>.",), *parts), ())
