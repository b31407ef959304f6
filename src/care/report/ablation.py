"""Write an ablation: `ablation.json`, a page, and a table in Markdown for a README.

All three are from one table (`care.evaluation.ablation_table`); nothing here computes a figure.
`load_ablation` reads the first, and `page_of` makes the second of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from care.evaluation.ablation_table import AblationRow, AblationTable
from care.report.forest_chart import forest_chart
from care.report.html import filled
from care.report.rows_table import as_table, told, write_table
from care.runs.files import write_whole
from care.runs.reading import file_digest, read_json
from care.typed import from_tree, to_tree

SCHEMA = "care.ablation/1"
"""Name and version of the layout of ablation.json."""
TITLE = "What each part of the repair is worth"
NAME = "ablation.json"


@dataclass(frozen=True)
class Ablation(AblationTable):
    """The whole of ablation.json."""

    schema: Literal["care.ablation/1"]
    """Name and version of this layout."""
    title: str
    """Heading of the page."""


def write_ablation(table: AblationTable, folder: Path | str) -> Path:
    """Write the three files into `folder`; the page's path. StorageError if that fails."""
    tree = {"schema": SCHEMA, "title": TITLE, **to_tree(table, "The ablation")}
    file = Path(folder) / NAME
    write_table(file, tree, as_markdown(table))
    return page_of(file)


def page_of(file: Path) -> Path:
    """Write the page of an ablation.json beside it; its path.

    DataError for what isn't one, StorageError if the page can't be written.
    """
    found = load_ablation(file)
    page = file.with_suffix(".html")
    html = render_ablation(found, file_digest(file, "ablation"), file.name)
    write_whole(page, html.encode("utf-8"))
    return page


def load_ablation(file: Path) -> Ablation:
    """Read an ablation.json; DataError for what isn't one."""
    tree = read_json(file, "ablation", otherwise="pass the ablation.json of a finished run")
    return from_tree(Ablation, tree, strict=False, what=f"The ablation {file}")


def render_ablation(found: Ablation, digest: str, json_name: str) -> str:
    """The HTML page; `digest` is the SHA-256 of the JSON."""
    return filled(
        "ablation_page.html.j2",
        report=found,
        digest=digest,
        json_name=json_name,
        suites=list(found.rows[0].suites) if found.rows else [],
        forest=forest_chart(found.rows),
        sections=[
            ("changes", "What each change does"),
            ("rows", "Every row"),
            ("claims", "What the paper says"),
        ],
    )


def as_markdown(table: AblationTable) -> str:
    """The rows as a table, and the claims as a list."""
    head = ["row", "ASR", "answered", "utility", "change of ASR", "p (Holm)"]
    return as_table(head, map(_cells, table.rows), table.claims)


def _cells(row: AblationRow) -> list[str]:
    if row.failed is not None:
        return [row.name, "not fitted", "", "", "", ""]
    against = row.against
    return [
        row.name,
        *(told(part) for part in (row.asr, row.answered, row.utility)),
        "" if against is None else told(against.change, "+"),
        "" if against is None else f"{against.p_holm:.2g}",
    ]
