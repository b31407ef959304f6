"""Transfer, adaptive and certified side by side, on made-up figures."""

import re

from care.report.threat_charts import threat_table, threats_chart
from care.statistics.intervals import wilson


def cell(k, n=20):
    found = wilson(k, n)
    return {"rate": found.rate, "low": found.low, "high": found.high, "n": n}


def threat(attack="pgd-32", certified=None, adaptive=8):
    made = {"attack": attack, "defense": "care <b>", "undefended": cell(19), "transfer": cell(1)}
    made["adaptive"] = None if adaptive is None else cell(adaptive)
    return made | ({} if certified is None else {"certified": cell(certified)})


def texts(markup):
    return re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", str(markup))


def test_a_row_holds_all_four_rates_with_their_intervals():
    assert texts(threat_table([threat(certified=2)])) == [
        *("Attack", "Defense", "Undefended", "Transfer", "Adaptive", "Certified"),
        *("pgd-32", "care &lt;b&gt;", "95.0% [76.4%, 99.1%]", "5.0% [0.9%, 23.6%]"),
        *("40.0% [21.9%, 61.3%]", "≤ 10.0% [2.8%, 30.1%]"),
    ]


def test_without_any_certificate_there_is_no_such_column():
    assert "Certified" not in texts(threat_table([threat()]))
    mixed = texts(threat_table([threat(certified=2), threat("gcg", adaptive=None)]))
    assert mixed[-4:] == ["95.0% [76.4%, 99.1%]", "5.0% [0.9%, 23.6%]", "", ""]


def test_the_chart_places_marks_by_their_rates():
    chart = str(threats_chart([threat(certified=2), threat("gcg", adaptive=None)]))
    left = 24 + 7 * len("pgd-32, care <b>")

    def x(share):
        return left + share * (840 - left)

    titles = re.findall(r'<g class="datum"><title>([^<]*)</title>', chart)
    assert [t.split(": ")[0].split(", ")[-1] for t in titles] == [
        *("transfer", "adaptive", "certified", "transfer"),
    ]  # fmt: skip
    circles = [float(v) for v in re.findall(r'cx="([\d.]+)"', chart)][1:]  # after the legend's
    assert circles == [round(x(0.05), 2)] * 2
    square = re.findall(r'<rect x="([\d.]+)"[^>]*width="([\d.]+)"', chart)[1]
    assert abs(float(square[0]) + float(square[1]) / 2 - x(0.1)) < 0.02


def test_nothing_gives_nothing():
    assert threat_table([]) == threats_chart([]) == ""
