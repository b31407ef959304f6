"""A small ablation: two methods, changes of both, and one that couldn't be fitted."""

from __future__ import annotations

from care.evaluation.ablation_table import AblationRow, AblationTable, AgainstMethod
from care.evaluation.results import Rates
from care.statistics.intervals import Interval, wilson


def row(name, of="whole", change=None, p=0.5, failed=None):
    if failed:
        return AblationRow(name, of, failed, {}, None, None, None, None, None)
    rate = wilson(6, 20)
    against = None if change is None else AgainstMethod(Interval(*change), p, p)
    suites = {
        "direct": Rates(rate.rate, rate.low, rate.high, 20),
        "pgd <b>": Rates(None, None, None, 0),
    }
    return AblationRow(name, of, None, suites, rate, rate, None, 0.125, against)


TABLE = AblationTable(
    (
        row("none", "none"),
        row("whole"),
        row("whole: one <layer>", change=(0.5, 0.25, 0.75), p=0.01),
        row("whole: half", change=(-0.25, -0.5, 0.0)),
        row("whole: K", failed="rank 1000 is more than 8"),
        row("other", "other"),
        row("other: half", "other", change=(0.0, -0.25, 0.25)),
    ),
    ("FFN far above attention is not found here.",),
)
