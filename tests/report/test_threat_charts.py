"""Transfer, adaptive and certified side by side: of a scorecard, and of a main job's report."""

import re

from care.evaluation.certificate import Certificate
from care.report.files import write_report
from care.report.threat_charts import (
    ThreatRow,
    card_threats,
    certifies,
    job_threats,
    threats_chart,
)
from care.statistics.intervals import wilson
from care.typed import to_tree
from kit.cards import made_card
from kit.reports import tree  # noqa: F401


def bound(k, n=20, unstated=0):
    found = wilson(k, n)
    return Certificate(found.rate, found.low, found.high, n, unstated, k - unstated, 0)


def row(attack="pgd-32", certified=None, adaptive=8):
    made = None if adaptive is None else wilson(adaptive, 20)
    limit = None if certified is None else bound(certified)
    return ThreatRow(attack, "care <b>", wilson(19, 20), wilson(1, 20), made, limit)


def test_the_chart_has_a_mark_for_each_rate():
    chart = str(threats_chart([row(certified=2), row("gcg", adaptive=None)]))
    titles = re.findall(r'<g class="datum"><title>([^<]*)</title>', chart)
    assert titles == [
        "pgd-32, care &lt;b&gt;, transfer: 5.0% [0.9%, 23.6%], n = 20",
        "pgd-32, care &lt;b&gt;, adaptive: 40.0% [21.9%, 61.3%], n = 20",
        "pgd-32, care &lt;b&gt;, certified, at most: ≤ 10.0% [2.8%, 30.1%], n = 20",
        "gcg, care &lt;b&gt;, transfer: 5.0% [0.9%, 23.6%], n = 20",
    ]


def test_without_any_certificate_there_is_no_such_mark():
    assert certifies([row(certified=2), row()]) and not certifies([row()])
    assert "certified" not in str(threats_chart([row()]))
    assert threats_chart([]) == ""


def test_the_rows_of_a_scorecard_are_its_threats():
    card = made_card()
    rows = card_threats(card.threats)
    assert [each.defense for each in rows] == ["edits only", "monitors only", "care"]
    first, last = rows[0], rows[-1]
    assert first.certified is None and last.certified is card.threats[-1].certified
    assert first.adaptive is card.threats[0].adaptive and first.losses == (0.01, 0.2)


def watched(report):
    """The report with a monitor, and with certificates of two of its suites."""
    report["repair"]["monitors"] = [
        {"reads": "request", "site": None, "pooling": "last", "threshold": 0.5}
    ]
    names = [suite["name"] for suite in report["suites"] if suite["role"] == "attack"][:2]
    report["certified"] = {
        names[0]: to_tree(bound(2, 24)),
        names[1]: to_tree(bound(24, 24, unstated=24)),
    }
    return report


def test_in_a_report_universal_pictures_are_adaptive_only_where_monitors_decide(tree):
    tree["suites"][1]["name"] = "pgd-32"
    rows = job_threats(tree)
    attacks = [suite for suite in tree["suites"] if suite["role"] == "attack"]
    assert [each.attack for each in rows] == [suite["name"] for suite in attacks]
    assert {each.adaptive for each in rows} == {each.certified for each in rows} == {None}
    rows = {each.attack: each for each in job_threats(watched(tree))}
    known = rows["pgd-32"]
    assert known.adaptive == known.transfer and known.transfer.rate == attacks[1]["after"]["rate"]
    assert [name for name, each in rows.items() if each.adaptive] == ["pgd-32"]
    assert sum(each.certified is not None for each in rows.values()) == 2


def test_the_page_of_a_report_shows_them(tree, tmp_path):
    page = write_report(tree, tmp_path)[0].read_text(encoding="utf-8")
    assert "pictures that are made through this repair may achieve far more" in page
    assert "Certified" not in page
    page = write_report(watched(tree), tmp_path)[0].read_text(encoding="utf-8")
    first = next(iter(tree["certified"]))
    assert "adaptive ones too, but for the monitors' word" in " ".join(page.split())
    assert f'≤ <b data-key="certified.{first}.rate">8.3%</b>' in page
    assert "none: goals aren't in the text" in page.replace("&#39;", "'")
    assert 'href="#threats"' in page
