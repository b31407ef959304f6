"""Write an ablation: `ablation.json`, a page, and a table in Markdown for a README.

All three are from one table (`care.evaluation.ablation_table`); nothing here computes a figure.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from care.evaluation.ablation_table import AblationRow, AblationTable
from care.report.html import render_ablation
from care.runs.files import write_whole
from care.statistics.intervals import Interval
from care.typed import to_tree

SCHEMA = "care.ablation/1"
TITLE = "What each part of the repair is worth"


def write_ablation(table: AblationTable, folder: Path | str) -> Path:
    """Write the three files into `folder`; the page's path. StorageError if that fails."""
    tree = {"schema": SCHEMA, "title": TITLE, **to_tree(table, "The ablation")}
    payload = (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode("ascii")
    page = Path(folder) / "ablation.html"
    html = render_ablation(tree, hashlib.sha256(payload).hexdigest(), "ablation.json")
    write_whole(page.with_suffix(".json"), payload)
    write_whole(page.with_suffix(".md"), as_markdown(table).encode("utf-8"))
    write_whole(page, html.encode("utf-8"))
    return page


def as_markdown(table: AblationTable) -> str:
    """The rows as a table, and the claims as a list."""
    head = ["row", "ASR", "answered", "utility", "change of ASR", "p (Holm)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in table.rows]
    return "\n".join([*lines, "", *(f"- {claim}" for claim in table.claims)]) + "\n"


def _cells(row: AblationRow) -> list[str]:
    if row.failed is not None:
        return [row.name, "not fitted", "", "", "", ""]
    against = row.against
    return [
        row.name,
        *(_told(part) for part in (row.asr, row.answered, row.utility)),
        "" if against is None else _told(against.change, "+"),
        "" if against is None else f"{against.p_holm:.2g}",
    ]


def _told(part: Interval | None, sign: str = "") -> str:
    if part is None:
        return ""
    return f"{part.rate:{sign}.2f} [{part.low:{sign}.2f}, {part.high:{sign}.2f}]"
