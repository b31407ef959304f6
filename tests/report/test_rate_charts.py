"""Rates as marks in rows: where marks are, what they are called, which defense has which."""

import re

from care.evaluation.results import Rates
from care.report.rate_charts import RateRow, Side, rates_chart, sides_of
from care.statistics.intervals import Interval

SIDES = [Side("a", "circle", "before"), Side("b", "diamond", "after"), Side("c", "drop", "side-3")]


def marks(chart):
    """Class and centre of every mark, those of the legend first."""
    found = []
    pattern = r'<(?:circle cx="([\d.]+)" cy="([\d.]+)"|path d="([^"]+)")[^>]*class="mark ([\w-]+)"'
    for x, y, path, look in re.findall(pattern, str(chart)):
        if path:
            corners = [[float(v) for v in p.split(",")] for p in path.strip("MZ").split("L")]
            x, y = (sum(c[k] for c in corners[:: max(1, len(corners) // 2)]) / 2 for k in (0, 1))
        found.append((look, round(float(x), 1), round(float(y), 1)))
    return found


def test_each_side_has_a_mark_at_its_rate():
    cells = (Interval(0.25, 0.2, 0.5, 8), Interval(0.5, 0.4, 0.6), None)
    chart = rates_chart([RateRow("suite", cells)], SIDES, "title")
    left = 24 + 7.2 * len("suite")

    def x(percent):
        return round(left + percent / 100 * (840 - left), 1)

    circle, diamond = marks(chart)[3:]
    assert circle[:2] == ("before", x(25)) and diamond[:2] == ("after", x(50))
    assert diamond[2] - circle[2] == 12
    titles = re.findall(r'<g class="datum"><title>([^<]*)', str(chart))
    assert titles == ["suite, a: 25.0% [20.0%, 50.0%], n = 8", "suite, b: 50.0% [40.0%, 60.0%]"]


def test_a_bound_says_so_and_a_suite_that_failed_has_no_mark():
    sides = [Side("most", "square", "certified", bound=True), SIDES[0]]
    failed = Rates(None, None, None, 0)
    chart = str(rates_chart([RateRow("s", (Interval(0.1, 0, 0.2), failed))], sides, "t"))
    assert "s, most: ≤ 10.0% [0.0%, 20.0%]" in chart
    assert chart.count('class="datum"') == 1 and 'class="link"' not in chart


def test_neighbours_of_a_group_stand_under_one_heading():
    cells = (Interval(0.1, 0, 0.2), Interval(0.2, 0, 0.3))
    rows = [RateRow(n, cells, g) for n, g in (("one", "A"), ("two", "A"), ("three", "B"))]
    chart = str(rates_chart(rows, SIDES[:2], "t"))
    assert re.findall(r'class="group">([^<]*)', chart) == ["A", "B"]
    assert chart.count('class="link"') == 3
    assert rates_chart([], SIDES, "t") == ""


def test_a_legend_that_is_too_long_goes_on_below():
    sides = [Side(f"a defense with a long name {k}", "circle", "before") for k in range(7)]
    cells = tuple(Interval(0.1, 0.0, 0.2) for _ in sides)
    one, many = (rates_chart([RateRow("s", cells[:k])], sides[:k], "t") for k in (2, 7))
    rows = [sorted({y for _, _, y in marks(chart)[:k]}) for chart, k in ((one, 2), (many, 7))]
    assert rows[0] == [12.0] and rows[1] == [12.0, 30.0, 48.0]
    assert all(x < 860 for _, x, _ in marks(many))


def test_the_bare_model_and_the_whole_repair_look_as_in_every_report():
    sides = sides_of(["none", "edits only", "care", "x", "y", "z", "w"], "none", ["edits only"])
    looks = {side.name: (side.shape, side.look) for side in sides}
    assert looks["none"] == ("circle", "before") and looks["care"] == ("diamond", "after")
    assert len(set(looks.values())) == 6 and looks["edits only"] == looks["care"]
    assert [side.name for side in sides] == ["none", "edits only", "care", "x", "y", "z", "w"]
