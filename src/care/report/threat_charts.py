"""Attacks against a defense, side by side: what each figure is, and their chart.

    undefended  success on the bare model
    transfer    of what was made without knowing the defense
    adaptive    of what was made through it
    certified   the most that anything in the picture can achieve beside these texts

Nothing is computed: the four come from the `threats` of a scorecard (table.json), or from the
suites of a main job's report (`job_threats`). Without any certificate that column is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from care.data.small_world.suites import PGD
from care.evaluation.attack_scores import Threat
from care.evaluation.certificate import Certificate
from care.report.rate_charts import Rate, RateRow, Side, rates_chart
from care.statistics.intervals import Interval
from care.typed import from_tree

TRANSFER = Side("transfer", "circle", "before")
ADAPTIVE = Side("adaptive", "diamond", "after")
CERTIFIED = Side("certified, at most", "square", "certified", bound=True)


class ThreatRow(NamedTuple):
    """One attack and one defense."""

    attack: str
    """Name of the attack."""
    defense: str
    """Name of the defense; none where a page is about one."""
    undefended: Rate | None
    """On the bare model."""
    transfer: Rate | None
    """Made without knowing the defense."""
    adaptive: Rate | None
    """Made through it; none where nothing was."""
    certified: Certificate | None
    """Beside any picture; none without a monitor of requests."""
    losses: tuple[float, float] | None = None
    """Loss of what was made on the bare model, and through the defense."""


def card_threats(threats: Sequence[Threat]) -> list[ThreatRow]:
    """The rows of a scorecard's threats."""
    return [
        ThreatRow(
            each.attack,
            each.defense,
            each.undefended,
            each.transfer,
            each.adaptive,
            each.certified,
            (each.loss_undefended, each.loss_adaptive),
        )
        for each in threats
    ]


def job_threats(report: Mapping[str, Any]) -> list[ThreatRow]:
    """The rows of a main job's report: its attack suites, all made without knowing the repair.

    A repair with monitors gives the bare model's answer until one raises an alarm, so the universal
    pictures, which were descended on the bare model, are also those that a descent through the
    repair would make: adaptive but for the monitors' word.
    """
    watched = bool((report["repair"] or {}).get("monitors"))
    bounds = report.get("certified", {})
    found: list[ThreatRow] = []
    for suite in report["suites"]:
        if suite["role"] == "attack":
            name = suite["name"]
            before, after = (_interval(suite[when], suite["n"]) for when in ("before", "after"))
            known = after if watched and name in PGD else None
            bound = from_tree(Certificate, bounds[name], strict=False) if name in bounds else None
            found.append(ThreatRow(name, "", before, after, known, bound))
    return found


def threats_chart(threats: Sequence[ThreatRow]) -> Markup:
    """Transfer, adaptive and certified rates as marks in rows, with their intervals."""
    sides = [TRANSFER, ADAPTIVE, *[CERTIFIED] * certifies(threats)]
    rows = [
        RateRow(
            f"{each.attack}, {each.defense}" if each.defense else each.attack,
            (each.transfer, each.adaptive, each.certified)[: len(sides)],
        )
        for each in threats
    ]
    title = "Attack success: unaware of the defense, knowing it, and at most"
    return rates_chart(rows, sides, title, "percent of requests")


def certifies(threats: Sequence[ThreatRow]) -> bool:
    """Whether anything is certified."""
    return any(each.certified is not None for each in threats)


def _interval(cell: Mapping[str, float], n: int) -> Interval:
    return Interval(cell["rate"], cell["low"], cell["high"], n)
