"""Write a comparison of defenses: `table.json`, a page, and a table in Markdown for a README.

All three are from one table (`care.evaluation.comparison_table`); nothing here computes a figure.
`load_comparison` reads the first, and `page_of` makes the second of it. Where further studies
stand beside the table (`care.report.studies`), page and Markdown show them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from care.evaluation.attack_scores import AttackFigure
from care.evaluation.comparison_studies import Studies
from care.evaluation.comparison_table import ComparedRow, ComparisonTable
from care.report import studies, study_charts
from care.report.comparison_charts import cost_chart, forest, pareto_chart
from care.report.evaluation import page_beside
from care.report.html import filled
from care.report.rows_table import as_table, told, write_table
from care.runs.files import write_whole
from care.runs.reading import file_digest, read_json
from care.typed import from_tree, to_tree

SCHEMA = "care.compare/1"
"""Name and version of the layout of table.json."""
TITLE = "Every defense in one table"
NAME = "table.json"


@dataclass(frozen=True)
class ComparisonFile(ComparisonTable):
    """The whole of a comparison's table.json."""

    schema: Literal["care.compare/1"]
    """Name and version of this layout."""
    title: str
    """Heading of the page."""


def write_comparison(table: ComparisonTable, folder: Path | str) -> Path:
    """Write the three files into `folder`; the page's path. StorageError if that fails."""
    tree = {"schema": SCHEMA, "title": TITLE, **to_tree(table, "The comparison")}
    file = Path(folder) / NAME
    found = studies.load_studies(file.parent)
    more = "" if found is None else studies.as_markdown(found)
    write_table(file, tree, as_markdown(table) + more)
    return page_of(file)


def is_comparison(tree: Any) -> bool:
    """Whether what a table.json holds is a comparison, and not an evaluation."""
    return isinstance(tree, Mapping) and str(tree.get("schema", "")).startswith("care.compare/")


def page_of(file: Path) -> Path:
    """Write the page of a comparison's table.json beside it; its path.

    DataError for what isn't one, StorageError if the page can't be written.
    """
    page = page_beside(file)
    more = studies.load_studies(file.parent)
    told = None if more is None else (more, file_digest(file.with_name(studies.NAME), "studies"))
    digest = file_digest(file, "comparison")
    html = render_comparison(load_comparison(file), digest, file.name, told)
    write_whole(page, html.encode("utf-8"))
    return page


def load_comparison(file: Path) -> ComparisonFile:
    """Read a comparison's table.json; DataError for what isn't one."""
    tree = read_json(file, "comparison", otherwise="pass the table.json of a finished comparison")
    return from_tree(ComparisonFile, tree, strict=False, what=f"The comparison {file}")


def render_comparison(
    found: ComparisonFile,
    digest: str,
    json_name: str,
    studied: tuple[Studies, str] | None = None,
) -> str:
    """The HTML page; `digest` is the SHA-256 of the JSON, `studied` further studies and theirs."""
    more, more_digest = studied or (None, "")
    return filled(
        "comparison_page.html.j2",
        report=found,
        digest=digest,
        json_name=json_name,
        attacks=_asked(found),
        by_attack=_by_attack,
        certified=_certified(found),
        pareto=pareto_chart(found.rows),
        forest=forest(found.rows),
        costs=cost_chart(found.rows),
        settings=lambda options: _settings(options) or "as published",
        studies=more,
        studies_digest=more_digest,
        studies_name=studies.NAME,
        study_charts=study_charts,
        sections=_sections(found, more),
    )


def _sections(found: ComparisonFile, more: Studies | None) -> list[tuple[str, str]]:
    sections = [
        ("claims", "What it shows", True),
        ("pareto", "Safety and utility", True),
        ("forest", "Attack success", True),
        ("rows", "Every row", True),
        ("suites", "By suite", True),
        ("judges", "Judges", found.otherwise),
        ("costs", "Cost", True),
        ("adaptive", "Attacks that know the defense", any(row.adaptive for row in found.rows)),
        ("studies", "Further studies", more is not None),
        ("families", "Unseen families", more is not None and more.families),
        ("sizes", "Requests to fit on", more is not None and more.sizes),
        ("strengths", "Strength", more is not None and more.strengths),
        ("tuning", "Settings that were tried", True),
    ]
    return [(anchor, title) for anchor, title, there in sections if there]


def _certified(found: ComparisonFile) -> str | None:
    """The attack suite whose certificates are shown: the first that has any."""
    return next((name for row in found.rows for name in row.certified), None)


def as_markdown(table: ComparisonTable) -> str:
    """The rows as a table, the claims as a list, and attack success by suite, attack and judge."""
    head = ["defense", "mean ASR", "against CARE", "p (Holm)", "utility", "harmless answered"]
    head += ["overhead", "fit, s", "examples"]
    attacks = [name for name, role in table.suites.items() if role == "attack"]
    by_suite = [
        [row.name, *(f"{row.suites[name].rate:.2f}" for name in attacks)]
        for row in table.rows
        if row.failed is None
    ]
    written = as_table(head, map(_cells, table.rows), (*table.claims, *table.notes))
    written += "\n" + as_table(["ASR by suite", *attacks], by_suite, ())
    asked = _asked(table)
    if asked:
        by_attack = [[row.name, *_attacked(row, asked)] for row in table.rows if row.adaptive]
        names = [
            f"{attack}, {made}: {requests}"
            for attack, requests in asked
            for made in ("transfer", "adaptive")
        ]
        written += "\n" + as_table(["ASR by attack", *names], by_attack, ())
    if not table.otherwise:
        return written
    judges = [other.judge for other in table.otherwise]
    by_judge = [
        [rows[0].name, *(told(row.asr) for row in rows)]
        for rows in zip(*(other.rows for other in table.otherwise), strict=True)
    ]
    agree = [
        f"{' and '.join(row.judges)} agree on {row.agreement:.0%} of {row.n} answers to attacks."
        for row in table.agreement
    ]
    return written + "\n" + as_table(["ASR by another judge", *judges], by_judge, agree)


def _asked(table: ComparisonTable) -> list[tuple[str, str]]:
    """The attacks that know the defense, each with the requests that it was tried on."""
    asked = [(f.attack, f.requests) for row in table.rows for f in row.adaptive]
    return list(dict.fromkeys(asked))


def _by_attack(row: ComparedRow) -> dict[tuple[str, str], tuple[int, AttackFigure]]:
    """The attacks that a row was asked, each with its place among them."""
    return {(f.attack, f.requests): (place, f) for place, f in enumerate(row.adaptive)}


def _attacked(row: ComparedRow, asked: Sequence[tuple[str, str]]) -> list[str]:
    """What of each attack passes a row, made on the bare model and made through the row."""
    figures = _by_attack(row)
    cells: list[str] = []
    for attack in asked:
        _, found = figures.get(attack, (None, None))
        transfer = None if found is None else found.transfer
        cells.append("" if transfer is None else told(transfer))
        cells.append("" if found is None else told(found.adaptive))
    return cells


def _cells(row: ComparedRow) -> list[str]:
    if row.failed is not None:
        return [row.name, f"not fitted: {row.failed}", *[""] * 7]
    against, cost = row.against, row.cost
    measured = ["", "", ""]
    if cost is not None:
        over = "" if cost.overhead is None else f"× {cost.overhead:.2f}"
        measured = [over, f"{cost.fit_seconds:.0f}", f"{cost.harmful} + {cost.harmless}"]
    return [
        row.name,
        told(row.asr),
        "" if against is None else told(against.change, "+"),
        "" if against is None else f"{against.p_holm:.2g}",
        told(row.utility),
        told(row.answered),
        *measured,
    ]


def _settings(options: Mapping[str, Any]) -> str:
    """Settings in words."""
    return ", ".join(f"{name} = {value}" for name, value in options.items())
