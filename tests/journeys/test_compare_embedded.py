"""`care compare --quick` on the embedded model, cut short: its table, its page, and going on.

A group of its own (`make test-compare`): what it asks is what everybody asks, with three test goals
of a suite and rivals that cost little. Figures of so few are looked at for their shape alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from care.evaluation.comparison_table import CARE, ComparisonTable
from care.interfaces.cli.app import main
from care.report.comparison import SCHEMA, TITLE
from care.typed import from_tree

pytestmark = [pytest.mark.compare, pytest.mark.embedded]

RIVALS = ("always-refuse", "self-reminder", "difference-of-means")
LATER = "leace"
"""Asked for when the others are there."""


def asked(out: Path, *more: str) -> ComparisonTable:
    """The table of a quick comparison, as it is on disk."""
    rivals = [word for name in RIVALS for word in ("--defense", name)]
    given = ["compare", "--quick", "--test-length", "48", *rivals, *more]
    assert main([*given, "--out", str(out)]) == 0
    tree = json.loads((out / "table.json").read_text())
    assert (tree.pop("schema"), tree.pop("title")) == (SCHEMA, TITLE)
    return from_tree(ComparisonTable, tree, "comparison")


def test_a_quick_comparison_ends_and_goes_on_with_another_rival(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = asked(out)
    rows = {row.name: row for row in first.rows}
    assert next(iter(rows)) == "none" and set(rows) >= {CARE, *RIVALS}
    assert {name: row.failed for name, row in rows.items() if row.failed} == {}
    assert all(rows[name].tried and rows[name].cost for name in RIVALS)
    asr = {name: row.asr.rate for name, row in rows.items() if row.asr is not None}
    assert asr["always-refuse"] == 0 <= asr[CARE] < asr["none"]
    assert any("Quick" in note for note in first.notes) and first.claims
    answers, judged = (out / "answers.jsonl").read_bytes(), (out / "rows.jsonl").read_bytes()

    table = asked(out, "--defense", LATER, "--resume")
    assert [row.name for row in table.rows] == [*rows, LATER]
    for one, other in zip(first.rows, table.rows, strict=False):
        assert one.suites == other.suites and one.asr == other.asr
    # What was answered and judged stays, and only the new rival is asked.
    assert (out / "answers.jsonl").read_bytes().startswith(answers)
    more = (out / "rows.jsonl").read_bytes().removeprefix(judged).splitlines()
    asked_now = {json.loads(row)["defense"] for row in more}  # by its name and settings
    assert {name.partition(" (")[0] for name in asked_now} == {LATER}
    fits = [json.loads(line) for line in (out / "fits.jsonl").read_text().splitlines()]
    assert all(math.isfinite(fit["seconds"]) for fit in fits)

    page = (out / "report.html").read_text()
    assert all(name in page for name in (*rows, LATER)) and "</html>" in page
