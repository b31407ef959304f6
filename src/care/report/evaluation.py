"""The page of an evaluation, from its table.json alone: `report.html` beside it.

The table is checked against its types (`care.evaluation.scores`) before a page is made of it.
Nothing is computed here: suites are told from those that attacks ask, attacks are put beside their
union, and charts are drawn of the figures. Loss curves of a table of an older version are read from
the run's folder (`care.evaluation.losses`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from care.evaluation.attack_scores import AttackFigure, AttackUnion
from care.evaluation.config import PARTS, UNDEFENDED, read_config, stored_defenses
from care.evaluation.losses import losses_in
from care.evaluation.scores import Scorecard
from care.evaluation.suite_scores import SuiteScores
from care.report.charts import ROLE_TITLES, outcome_bars
from care.report.html import filled
from care.report.loss_charts import losses_chart
from care.report.monitor_charts import monitors_chart, shares_of
from care.report.rate_charts import Rate, RateRow, Side, rates_chart, sides_of
from care.report.threat_charts import card_threats, certifies, threats_chart
from care.runs.files import write_whole
from care.runs.manifest import MANIFEST, read_manifest
from care.runs.reading import file_digest, read_json
from care.typed import from_tree

NAME = "table.json"
"""What a page is made of."""
BELONGS = "report.json"
"""What report.html belongs to where a main job's answers were judged again."""


class AttackTable(NamedTuple):
    """All attacks on the same requests."""

    requests: str
    """The held-out requests."""
    figures: dict[str, dict[str, tuple[int, AttackFigure]]]
    """Place and figure, by attack and defense."""
    unions: dict[str, tuple[int, AttackUnion]]
    """Place and union, by defense."""
    chart: Markup
    """Their adaptive rates."""


def page_of(file: Path) -> Path:
    """Write the page of a table.json beside it; its path.

    DataError for what isn't one, StorageError if the page can't be written.
    """
    card = load_card(file)
    page = page_beside(file)
    html = render_card(card, file_digest(file, "table"), file.name)
    write_whole(page, html.encode("utf-8"))
    return page


def page_beside(file: Path) -> Path:
    """Where the page of a table.json goes: beside a main job's it has another name."""
    owned = (file.parent / BELONGS).exists()
    return file.with_name("table.html" if owned else "report.html")


def load_card(file: Path) -> Scorecard:
    """Read a table.json; DataError for what isn't one."""
    tree = read_json(file, "table", otherwise="pass the table.json of a finished evaluation")
    card = from_tree(Scorecard, tree, strict=False, what=f"The table {file}")
    if card.losses or not (file.parent / MANIFEST).is_file():
        return card
    defenses = stored_defenses(read_config(read_manifest(file.with_name(MANIFEST))))
    return replace(card, losses=tuple(losses_in(file.parent, defenses)))


def render_card(card: Scorecard, digest: str, json_name: str) -> str:
    """The HTML page; `digest` is the SHA-256 of the JSON."""
    defenses = list(dict.fromkeys(name for suite in card.suites for name in suite.defenses))
    sides = sides_of(defenses, UNDEFENDED, PARTS)
    asked = _asked_by_attacks(card, defenses)
    plain = [suite for suite in card.suites if suite.name not in asked]
    by_suite = list(enumerate(card.suites))
    by_test = list(enumerate(card.comparisons))
    threats = card_threats(card.threats)
    attacks = _attack_tables(card, sides)
    values: dict[str, Any] = {
        "card": card,
        "defenses": defenses,
        "bare": UNDEFENDED,
        "suites": [pair for pair in by_suite if pair[1].name not in asked],
        "others": [pair for pair in by_suite if pair[1].name in asked],
        "tests": [pair for pair in by_test if pair[1].suite not in asked],
        "other_tests": [pair for pair in by_test if pair[1].suite in asked],
        "published": [
            (suite.name, name, score)
            for suite in card.suites
            for name, cell in suite.defenses.items()
            for score in cell.published
        ],
        "rates_chart": _rates(plain, sides),
        "outcomes_chart": outcome_bars(
            {s.name: {name: cell.outcomes for name, cell in s.defenses.items()} for s in plain}
        ),
        "parts": [name for name in defenses if name in PARTS],
        "threats": threats,
        "certifies": certifies(threats),
        "threats_chart": threats_chart(threats),
        "attacks": attacks,
        "floors": _floors(card),
        "losses_chart": losses_chart(card.losses),
        "monitors": _monitors(card, asked),
        "shares_of": shares_of,
    }
    title = f"Evaluation of {card.run.model or 'a model'}"
    return filled(
        "evaluation_page.html.j2",
        report={"title": title, "schema": card.schema},
        digest=digest,
        json_name=json_name,
        sections=_sections(values),
        **values,
    )


def _sections(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the parts that this page has, in order."""
    card: Scorecard = values["card"]
    return [
        (anchor, title)
        for anchor, title, present in (
            ("rates", "Rates", True),
            ("tests", "Paired tests", card.comparisons),
            ("threats", "Transfer, adaptive, certified", card.threats),
            ("attacks", "All attacks", values["attacks"] or card.tries),
            ("losses", "Losses", card.losses),
            ("parts", "Parts", values["parts"]),
            ("monitors", "Monitors", card.monitors),
            ("outcomes", "Outcomes", True),
            ("judges", "Judges", len(card.judges) > 1 or card.labels or card.pictures),
            ("limits", "What it can show", True),
            ("run", "Run", True),
        )
        if present
    ]


def _asked_by_attacks(card: Scorecard, defenses: Sequence[str]) -> set[str]:
    """Names of the suites that attacks ask, each under its own or as made on a defense."""
    names = {each.attack for each in (*card.threats, *card.tries, *card.attacks)}
    made = {f"{name} on {defense}" for name in names for defense in defenses}
    return made | {each.suite for each in card.tries} | {f"{name}" for name in names}


def _rates(suites: Sequence[SuiteScores], sides: Sequence[Side]) -> Markup:
    rows = [
        RateRow(suite.name, tuple(suite.defenses.get(side.name) for side in sides), title)
        for role, title in ROLE_TITLES.items()
        for suite in suites
        if suite.role == role
    ]
    return rates_chart(rows, sides, "Rates of every suite under every defense")


def _attack_tables(card: Scorecard, sides: Sequence[Side]) -> list[AttackTable]:
    found: list[AttackTable] = []
    for requests in dict.fromkeys(union.requests for union in card.unions):
        figures: dict[str, dict[str, tuple[int, AttackFigure]]] = {}
        for place, each in enumerate(card.attacks):
            if each.requests == requests:
                figures.setdefault(each.attack, {})[each.defense] = (place, each)
        unions = {
            union.defense: (place, union)
            for place, union in enumerate(card.unions)
            if union.requests == requests
        }
        chart = _attacks_chart(requests, figures, unions, sides)
        found.append(AttackTable(requests, figures, unions, chart))
    return found


def _attacks_chart(
    requests: str,
    figures: Mapping[str, Mapping[str, tuple[int, AttackFigure]]],
    unions: Mapping[str, tuple[int, AttackUnion]],
    sides: Sequence[Side],
) -> Markup:
    """A row for each attack, then the union and what is certified."""
    rows = [
        RateRow(name, _cells(sides, {d: each.adaptive for d, (_, each) in by_defense.items()}))
        for name, by_defense in figures.items()
    ]
    together = "All together"
    union = {d: each.union for d, (_, each) in unions.items()}
    rows.append(RateRow("any of all attacks", _cells(sides, union), together))
    bounds = {d: each.certified for d, (_, each) in unions.items() if each.certified}
    if bounds:
        rows.append(RateRow("any picture, at most (certified)", _cells(sides, bounds), together))
    return rates_chart(rows, sides, f"Attacks on {requests}", "percent of requests won")


def _cells(sides: Sequence[Side], by_defense: Mapping[str, Rate]) -> tuple[Rate | None, ...]:
    return tuple(by_defense.get(side.name) for side in sides)


def _floors(card: Scorecard) -> dict[str, str]:
    """Of attacks whose searches still fell: how many, in words."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(each.attack for each in card.losses):
        own = [each for each in card.losses if each.attack == name]
        falling, all_ = sum(each.falling for each in own), sum(each.searches for each in own)
        if falling:
            found[name] = f"a floor: {falling} of {all_} losses still fell"
    return found


def _monitors(card: Scorecard, asked: set[str]) -> list[tuple[str, Markup]]:
    """For each defense a chart of the suites that no attack asks, or of all if there are none."""
    found: list[tuple[str, Markup]] = []
    for defense in dict.fromkeys(each.defense for each in card.monitors):
        own = [each for each in card.monitors if each.defense == defense]
        plain = [each for each in own if each.suite not in asked]
        found.append((defense, monitors_chart(plain or own)))
    return found
