"""The page of a comparison: charts and tables, from its table.json alone."""

from __future__ import annotations

import json
import math
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
from care.report.studies import NAME, load_studies, write_studies
from care.report.study_charts import families_chart, sizes_chart, strengths_chart
from care.typed import from_tree, to_tree
from kit.cards import write_card
from kit.comparisons import adaptive, studies, table
from kit.pages import Page, at

TABLE = table()
ROWS = {row.name: row for row in TABLE.rows}
MADE = ("transfer", "adaptive")
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
    parts = [part.splitlines() for part in "\n".join(lines).split("\n\n")]
    tables = [[line for line in part if line.startswith("| ")] for part in parts]
    fitted = [row for row in TABLE.rows if row.failed is None]
    attacked = [row for row in TABLE.rows if row.adaptive]
    lengths = [len(TABLE.rows) + 1, 0, len(fitted) + 1, len(attacked) + 1]
    assert [len(rows) for rows in tables] == lengths
    assert parts[1] == [f"- {sentence}" for sentence in (*TABLE.claims, *TABLE.notes)]
    assert tables[2][0] == "| ASR by suite | direct | pgd <b> |"
    assert f"| {fitted[0].name} | 1.00 | {fitted[0].suites['pgd <b>'].rate:.2f} |" in tables[2]
    assert tables[3][0].startswith("| ASR by attack | pgd-32, transfer: ")
    assert [row.name for row in attacked] == [line.split(" | ")[0][2:] for line in tables[3][1:]]
    assert re.fullmatch(r"\| careful \| .*0\.75 \[.*\] \|", tables[3][2])
    assert "| careful | 0.60 [" in "\n".join(lines) and "× 1.25 | 2 | 30 + 40 |" in lines[3]


def test_an_attack_that_not_every_row_was_asked_stands_under_its_own_name(tmp_path):
    first, second = adaptive(CARE, 0.25), adaptive("careful", 0.75)
    other = (replace(second[0], attack="openings"),)
    rows = [
        replace(row, adaptive={CARE: first + other, "careful": other}.get(row.name, ()))
        for row in TABLE.rows
    ]
    html = write_comparison(replace(TABLE, rows=tuple(rows)), tmp_path).read_text()
    shown = html.partition('id="adaptive-table"')[2].partition("</table>")[0]
    head = re.findall(r'class="n">([^<]*)</th>', shown)
    assert head == [f"{name}, {made}" for name in ("pgd-32", "openings") for made in MADE]
    cells = {
        name: [
            bool(re.search("data-key", cell)) for cell in row.split('<td class="n stacked">')[1:]
        ]
        for name, row in re.findall(r'class="named">([^<]*)</th>(.*?)</tr>', shown, re.S)
    }
    assert cells == {CARE: [True] * 4, "careful": [False, False, True, True]}
    [markdown] = [
        line
        for line in (tmp_path / "table.md").read_text().partition("ASR by attack")[2].splitlines()
        if line.startswith("| careful")
    ]
    assert re.fullmatch(r"\| careful \|  \|  \| 0\.50 .* \| 0\.75 .* \|", markdown)


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


def test_further_studies_stand_on_the_page_and_in_the_markdown(tmp_path):
    more = studies()
    write_studies(more, tmp_path)
    page = write_comparison(TABLE, tmp_path)
    found = load_studies(tmp_path)
    assert found is not None and found.families == more.families and found.claims == more.claims
    tree = {"studies": json.loads((tmp_path / NAME).read_text())}
    html = page.read_text()
    values = {k: v for k, v in Page(html).values.items() if k.startswith("studies.")}
    for key, words in values.items():
        value, name = at(tree, key), key.rpartition(".")[2]
        if ".change." in key:
            wanted = points(100 * value)
        elif ".counts." in key or name in ("most", "factor", "strength"):
            wanted = number(value)
        else:
            wanted = p_value(value) if name == "p_holm" else percent(value)
        assert words.strip() == wanted, key
    for key in (
        "studies.families.1.unseen.rate",
        "studies.families.0.against.p_holm",
        "studies.sizes.0.counts.complied",
        "studies.sizes.2.answered.low",
        "studies.strengths.3.asr.rate",
    ):
        assert key in values, key
    assert "not fitted: too &lt;few&gt;" in html and "not fitted: nothing is left" in html
    assert sha256((tmp_path / NAME).read_bytes()).hexdigest() in html
    assert all(claim in unescape(html) for claim in (*more.claims, *more.notes))
    markdown = (tmp_path / "table.md").read_text()
    assert "| careful | pgd <b> | 0.60 [" in markdown and "| care | 250 | 0.05 [" in markdown
    assert "| careful | 8 (× 4) | 0.00 [" in markdown and f"- {more.claims[1]}" in markdown
    (tmp_path / NAME).write_text('{"schema": "care.studies/9"}')
    with pytest.raises(DataError, match="is missing"):
        page_of(tmp_path / "table.json")
    (tmp_path / NAME).unlink()
    assert "Further studies" not in page_of(tmp_path / "table.json").read_text()


def test_the_charts_of_studies_are_to_scale():
    more = studies()
    sizes = str(sizes_chart(more.sizes))
    curve = re.search(r'd="M([\d.]+),([\d.]+)L([\d.]+),([\d.]+)" class="curve c-attack"', sizes)
    assert curve is not None
    x1, y1, x2, y2 = map(float, curve.groups())
    start, end = 46.0, (860 - 8) / 3 - 16
    share = math.log(64 / 12.8) / math.log(312.5 / 12.8)  # logarithmic, from 16 and to 250
    assert x1 == pytest.approx(start + share * (end - start), abs=0.02) and x2 > x1
    assert (y1, y2) == (30 + 160 - 0.6 * 130, 30 + 160 - 0.05 * 130)
    assert sizes.count('class="datum"') == 4  # two of a fit, and one fit failed
    strengths = str(strengths_chart(more.strengths))
    assert re.findall(r'class="name">([^<]*)', strengths).count("0, 0.25") == 1
    assert strengths.count('class="datum"') == 4
    families = str(families_chart(more.families))
    assert families.count('class="datum"') == 4 and "harsh" in families
    for chart in (families_chart, sizes_chart, strengths_chart):
        assert chart(()) == ""
