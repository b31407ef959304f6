"""The charts of a comparison's further studies, as inline SVG: small multiples, one per defense.

    families     rates of each family with its limits, fitted with it and without it
    sizes        attack success and harmless requests answered by requests to fit on, log axis
    strengths    attack success against harmless requests answered, a line through all strengths

An empty study gives empty markup. Figures stand in the tables beside the charts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from care.evaluation.comparison_studies import AtStrength, FittedOn, UnseenFamily
from care.report import svg
from care.report.chart_labels import Box, ChartMark, groups, labels
from care.report.rate_charts import RateRow, Side, rates_chart, told
from care.report.svg import WIDTH, Scale, tag
from care.statistics.intervals import Interval

_COLUMNS = 3
_WIDTH = (WIDTH - 8) / _COLUMNS
_HEIGHT = 214.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 16.0, 30.0, 160.0
_FAMILIES = (
    Side("fitted with the family", "circle", "before"),
    Side("fitted without it", "diamond", "after"),
)
_LOOKS = {"asr": ("square", "c-attack"), "answered": ("circle", "c-benign")}
_WORDS = {"asr": "attack success", "answered": "harmless requests answered"}
_PERCENT = (0.0, 50.0, 100.0)


def families_chart(rows: Sequence[UnseenFamily]) -> Markup:
    """Attack success of each family by defense, fitted with it and without it."""
    families = [row.family for row in rows]
    by_family = sorted(rows, key=lambda row: families.index(row.family))
    return rates_chart(
        [RateRow(row.defense, (row.seen, row.unseen), row.family) for row in by_family],
        _FAMILIES,
        "Attack families that nothing was fitted on",
        "attack success, percent",
    )


def sizes_chart(points: Sequence[FittedOn]) -> Markup:
    """Both rates by the most requests of each class, a panel for each defense."""
    if not points:
        return Markup("")
    sizes = sorted({point.most for point in points})
    ends = (0.8 * sizes[0], 1.25 * sizes[-1])

    def drawn(name: str, x: float, y: float) -> Markup:
        own = [point for point in points if point.defense == name and point.failed is None]
        across = Scale(*ends, x + _LEFT, x + _WIDTH - _RIGHT, log=True)
        up = Scale(0.0, 100.0, y + _BOTTOM, y + _TOP)
        parts = [_axes(name, x, y, across, up, [float(size) for size in sizes])]
        for key in _LOOKS:
            parts.append(_curve(own, key, across, up))
        return svg.join(parts)

    legend = svg.legend([(*_LOOKS[key], _WORDS[key]) for key in _LOOKS], _LEFT, 14, 150)
    axes = "upwards: percent; across: most requests of each class, log scale"
    return _panels([point.defense for point in points], drawn, "Requests to fit on", legend, axes)


def strengths_chart(points: Sequence[AtStrength]) -> Markup:
    """Attack success against harmless requests answered, a panel for each defense."""
    there = [point for point in points if point.asr is not None and point.answered is not None]
    if not there:
        return Markup("")

    def drawn(name: str, x: float, y: float) -> Markup:
        own = [point for point in there if point.defense == name]
        across = Scale(0.0, 100.0, x + _LEFT, x + _WIDTH - _RIGHT)
        up = Scale(0.0, 100.0, y + _BOTTOM, y + _TOP)
        marks = [
            ChartMark(
                f"{point.factor:g}", across(100 * _rate(point.asr)), up(100 * _rate(point.answered))
            )
            for point in own
        ]
        within = Box(across.start + 3, up.end - 8, across.end + _RIGHT, up.start - 3)
        parts = [_axes(name, x, y, across, up, [0.0, 50.0, 100.0])]
        parts.append(svg.path([(mark.x, mark.y) for mark in marks], "link", fill="none"))
        parts += [_strength(point, mark) for point, mark in zip(own, marks, strict=True)]
        parts.append(labels(groups(marks), within, joined=True))
        return svg.join(parts)

    shapes = [("square", "c-attack", "taken"), ("circle", "c-benign", "other strengths")]
    axes = "upwards: harmless requests answered; across: attack success; percent"
    legend = svg.legend(shapes, _LEFT, 14, 150)
    return _panels([point.defense for point in there], drawn, "Strength", legend, axes)


def _panels(
    names: Sequence[str],
    drawn: Callable[[str, float, float], Markup],
    title: str,
    legend: Markup,
    axes: str,
) -> Markup:
    """A panel for each name, three in a row, under a legend."""
    there = list(dict.fromkeys(names))
    panels = [
        drawn(name, (place % _COLUMNS) * _WIDTH, 30 + (place // _COLUMNS) * _HEIGHT)
        for place, name in enumerate(there)
    ]
    words = svg.label(_LEFT + 380, 14, axes, class_="axis")
    return svg.canvas(
        WIDTH, 30 + -(-len(there) // _COLUMNS) * _HEIGHT, title, legend, words, *panels
    )


def _axes(
    name: str, x: float, y: float, across: Scale, up: Scale, ticks: Sequence[float]
) -> Markup:
    heading = svg.label(x + 8, y + 12, svg.shorten(name, 38), class_="group")
    grid = [
        svg.line(across.start, up(tick), across.end, up(tick), "grid")
        + svg.label(across.start - 8, up(tick) + 4, f"{tick:g}", "end", "tick")
        for tick in _PERCENT
    ]
    return svg.join([heading, *grid, svg.x_axis(across, up.end, up.start, "", ticks)])


def _curve(points: Sequence[FittedOn], key: str, across: Scale, up: Scale) -> Markup:
    look = _LOOKS[key][1]
    rates = [(p, rate) for p in points if (rate := getattr(p, key)) is not None]
    places = [(across(p.most), up(100 * rate.rate)) for p, rate in rates]
    line = [svg.path(places, f"curve {look}")] if len(places) > 1 else []
    return svg.join(
        [
            *line,
            *(_datum(p, key, rate, at, up) for (p, rate), at in zip(rates, places, strict=True)),
        ]
    )


def _datum(point: FittedOn, key: str, rate: Interval, at: tuple[float, float], up: Scale) -> Markup:
    shape, look = _LOOKS[key]
    counts = ", ".join(f"{count} {name}" for name, count in point.counts.items())
    words = f"{point.defense} on {point.most} ({counts}): {_WORDS[key]} {told(rate)}"
    return tag(
        "g",
        tag("title", words),
        svg.line(at[0], up(100 * rate.low), at[0], up(100 * rate.high), f"whisker {look}"),
        svg.marker(shape, *at, look, size=4.0),
        class_="datum",
    )


def _strength(point: AtStrength, mark: ChartMark) -> Markup:
    words = (
        f"{point.defense} at {point.factor:g} times its strength: attack success "
        f"{told(point.asr or Interval(0, 0, 0))}, harmless requests answered "
        f"{told(point.answered or Interval(0, 0, 0))}"
    )
    shape, look = ("square", "c-attack") if point.factor == 1.0 else ("circle", "c-benign")
    return tag(
        "g", tag("title", words), svg.marker(shape, mark.x, mark.y, look, size=4.0), class_="datum"
    )


def _rate(rate: Interval | None) -> float:
    return 0.0 if rate is None else rate.rate
