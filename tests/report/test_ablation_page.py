"""The page of an ablation: the forest plot and the table, from ablation.json alone."""

from __future__ import annotations

import json
import re
from hashlib import sha256

import pytest

from care.errors import DataError
from care.report.ablation import SCHEMA, Ablation, load_ablation, page_of, write_ablation
from care.report.forest_chart import forest_chart
from care.report.numbers import p_value, percent, points
from care.typed import from_tree, to_tree
from kit.ablations import TABLE, row
from kit.pages import Page, at


def marks(chart):
    return re.findall(r'<(circle|rect)[^>]*(?:cx|x)="([\d.]+)"[^>]*class="mark (\w+)"', chart)


def test_each_change_stands_at_its_place_under_its_method():
    chart = str(forest_chart(TABLE.rows))
    left = 30 + 6.8 * len("one <layer>")

    def x(share):  # from −50 to 75 points and 5 % more at both ends
        return left + (100 * share + 56.25) / 137.5 * (650 - left)

    found = marks(chart)
    assert [(shape, look) for shape, _, look in found] == [
        ("rect", "after"),
        ("circle", "before"),
        ("circle", "before"),
    ]
    assert float(found[0][1]) + 4.5 == pytest.approx(x(0.5), abs=0.02)
    assert float(found[1][1]) == pytest.approx(x(-0.25), abs=0.02)
    bars = re.findall(r'<line x1="([\d.]+)"[^>]*x2="([\d.]+)"[^>]*class="bar', chart)
    assert [float(v) for v in bars[0]] == pytest.approx([x(0.25), x(0.75)], abs=0.02)
    zero = re.search(r'<line x1="([\d.]+)"[^>]*class="zero"', chart)
    assert zero and float(zero[1]) == pytest.approx(x(0), abs=0.02)
    heads = re.findall(r'class="group">([^<]*)', chart)
    assert heads == ["whole, attack success 30.0%", "other, attack success 30.0%"]
    assert (
        "not fitted" in chart and "+50.0 [+25.0, +75.0]" in chart and "one &lt;layer&gt;" in chart
    )


def test_without_a_change_there_is_no_plot():
    assert forest_chart(TABLE.rows[:2]) == ""
    alone = str(forest_chart([row("whole", failed="no"), row("whole: K", failed="no")]))
    assert alone.count("not fitted") == 1 and "attack success" in alone


def test_the_page_says_what_the_file_says(tmp_path):
    page = write_ablation(TABLE, tmp_path)
    tree = json.loads((tmp_path / "ablation.json").read_text())
    assert list(tree) == ["schema", "title", "rows", "claims"] and tree["schema"] == SCHEMA
    html = page.read_text()
    shown = Page(html)
    for key, words in shown.values.items():
        value = at(tree, key)
        wanted = points(100 * value) if ".change." in key else percent(value)
        assert words == (p_value(value) if key.endswith("p_holm") else wanted), key
    for key in ("rows.2.against.change.low", "rows.1.suites.direct.rate", "rows.0.asr.high"):
        assert key in shown.values
    assert (
        "not fitted: rank 1000" in html
        and sha256((tmp_path / "ablation.json").read_bytes()).hexdigest() in html
    )
    assert all(address.startswith("#") for address in shown.addresses())
    assert "pgd &lt;b&gt;" in html and "<script" not in html


def test_a_stored_one_is_read_back_and_its_page_made_again(tmp_path):
    first = write_ablation(TABLE, tmp_path).read_bytes()
    found = load_ablation(tmp_path / "ablation.json")
    assert (found.rows, found.claims) == (TABLE.rows, TABLE.claims)
    assert from_tree(Ablation, to_tree(found)) == found
    (tmp_path / "ablation.html").unlink()
    assert page_of(tmp_path / "ablation.json").read_bytes() == first
    tree = json.loads((tmp_path / "ablation.json").read_text())
    for broken, words in (
        (tree | {"schema": "care.ablation/9"}, "care.ablation/1"),
        (tree | {"rows": tree["rows"][2:]}, "which is no row"),
    ):
        (tmp_path / "ablation.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=words):
            page_of(tmp_path / "ablation.json")
