"""The page of a comparison: charts and tables, from its table.json alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from html import unescape

import pytest

from care.errors import DataError
from care.evaluation.comparison_table import CARE
from care.report.comparison import (
    SCHEMA,
    ComparisonFile,
    load_comparison,
    page_of,
    write_comparison,
)
from care.report.comparison_charts import cost_chart, forest, front, harmless_use, pareto_chart
from care.report.numbers import number, p_value, percent, points
from care.report.stored import pages_of
from care.typed import from_tree, to_tree
from kit.cards import write_card
from kit.comparisons import table
from kit.pages import Page, at

TABLE = table()
ROWS = {row.name: row for row in TABLE.rows}
NUMBERS = ("forwards", "answers", "overhead", "fit_seconds", "harmful", "harmless")


def test_the_page_says_what_the_file_says(tmp_path):
    page = write_comparison(TABLE, tmp_path)
    tree = json.loads((tmp_path / "table.json").read_text())
    assert tree["schema"] == SCHEMA and page == tmp_path / "report.html"
    html = page.read_text()
    shown = Page(html)
    for key, words in shown.values.items():
        value, name = at(tree, key), key.rpartition(".")[2]
        if ".cost." in key and name in NUMBERS:
            wanted = number(value)
        elif ".change." in key:
            wanted = points(100 * value)
        else:
            wanted = p_value(value) if name == "p_holm" else percent(value)
        assert words.strip() == wanted, key
    for key in (
        "rows.1.fits.1.asr",
        "rows.2.against.change.low",
        "rows.2.suites.pgd <b>.rate",
        "rows.2.tried.0.asr",
        "rows.2.cost.overhead",
        "rows.2.adaptive.0.adaptive.rate",
    ):
        assert key in shown.values, key
    assert "not fitted: no picture" in html and "not fitted: too &lt;strong&gt;" in html
    assert sha256((tmp_path / "table.json").read_bytes()).hexdigest() in html
    assert all(address.startswith("#") for address in shown.addresses()) and "<script" not in html
    assert all(claim in unescape(html) for claim in (*TABLE.claims, *TABLE.notes))
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == len(TABLE.rows) + 1
    assert lines[-len(TABLE.claims) - 1 : -1] == [f"- {claim}" for claim in TABLE.claims]
    assert "| careful | 0.60 [" in "\n".join(lines) and "× 1.25 | 2 | 30 + 40 |" in lines[3]


def test_a_stored_one_is_read_back_and_told_from_an_evaluation(tmp_path):
    first = write_comparison(TABLE, tmp_path).read_bytes()
    found = load_comparison(tmp_path / "table.json")
    assert (found.rows, found.claims) == (TABLE.rows, TABLE.claims)
    assert from_tree(ComparisonFile, to_tree(found)) == found
    (tmp_path / "report.html").unlink()
    assert pages_of(tmp_path) == [tmp_path / "report.html"]
    assert (tmp_path / "report.html").read_bytes() == first
    tree = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(tree | {"schema": "care.compare/9"}))
    with pytest.raises(DataError, match=r"care\.compare/1"):
        page_of(tmp_path / "table.json")
    write_card(tmp_path)
    [page] = pages_of(tmp_path)
    assert "Evaluation of" in page.read_text()


def test_rows_that_no_other_beats_make_the_front():
    assert [row.name for row in front(TABLE.rows)] == ["harsh", CARE]
    use = harmless_use(ROWS["harsh"])
    assert use is not None and use.rate == 0.5
    assert harmless_use(replace(ROWS[CARE], utility=None, answered=None)) is None


def test_each_row_stands_at_its_place():
    chart = str(forest(TABLE.rows))
    names = re.findall(r'text-anchor="end" class="tick">([^<]*)', chart)
    assert names == ["harsh", CARE, "constant", "careful", "none"]
    assert chart.count('class="datum"') == 5 and "60.0% [" in chart
    left = 24 + 7.2 * len("constant")

    def x(share):
        return left + share * (670 - left)

    zero = re.search(r'<line x1="([\d.]+)"[^>]*class="zero"', chart)
    assert zero and float(zero[1]) == pytest.approx(x(0.05), abs=0.02)
    strokes = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="\1"[^>]*class="base"', chart)
    assert pytest.approx(x(0.1), abs=0.02) in [float(at) for at in strokes]
    pareto = str(pareto_chart(TABLE.rows))
    assert pareto.count('class="datum"') == 5 and 'class="link"' in pareto
    assert sorted(re.findall(r'class="name">([^<]*)', pareto)) == [CARE, "harsh", "none"]
    costs = str(cost_chart(TABLE.rows))
    bars = re.findall(r'<line x1="([\d.]+)"[^>]*x2="([\d.]+)"[^>]*class="bar', costs)
    assert len(bars) == 3
    ends = [float(end) - float(start) for start, end in bars]
    assert ends[1] / ends[0] == pytest.approx(2.5, abs=0.01)


def test_without_figures_there_is_no_chart():
    failed = [row for row in TABLE.rows if row.failed]
    for chart in (forest, pareto_chart, cost_chart):
        assert chart([replace(row, cost=None) for row in failed]) == ""
