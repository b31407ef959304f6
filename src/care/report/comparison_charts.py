"""The charts of a comparison of defenses, as inline SVG: safety against utility, a forest plot of
attack success, and bars of cost.

CARE's rows, rivals and controls differ in shape as well as in colour. The Pareto front joins the
rows that no other beats in both attack success and harmless use (the mean of utility and answered
harmless requests, as far as both are there). Figures stand beside the charts as text.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from care.evaluation.comparison_table import CARE, ComparedRow
from care.report import svg
from care.report.chart_labels import Box, ChartMark, groups, labels
from care.report.numbers import number, percent
from care.report.rate_charts import label_width, told
from care.report.svg import WIDTH, Scale, tag
from care.statistics.intervals import Interval

LOOKS = {
    "bare": ("circle", "before"),
    "care": ("diamond", "after"),
    "rival": ("square", "side-2"),
    "control": ("drop", "side-4"),
}
"""Shape and class of the mark of each group."""
_WORDS = {"bare": "bare model", "care": "CARE", "rival": "rivals", "control": "controls"}
_ROW = 22.0
_TOP, _HEIGHT = 58.0, 452.0


def harmless_use(row: ComparedRow) -> Interval | None:
    """Where a row stands in harmless use: the mean of utility and harmless requests answered, with
    the wider of their limits; None without either."""
    parts = [part for part in (row.utility, row.answered) if part is not None]
    if not parts:
        return None
    rate = sum(part.rate for part in parts) / len(parts)
    below, above = (
        max(abs(part.rate - end) for part, end in zip(parts, ends, strict=True))
        for ends in ([p.low for p in parts], [p.high for p in parts])
    )
    return Interval(rate, max(0.0, rate - below), min(1.0, rate + above))


def front(rows: Sequence[ComparedRow]) -> list[ComparedRow]:
    """The rows that no other beats in both, by attack success."""
    there = [row for row in rows if row.asr is not None and harmless_use(row) is not None]
    kept = []
    for row in there:
        own, use = _asr(row), _use(row)
        beaten = any(
            _asr(o) <= own and _use(o) >= use and (_asr(o) < own or _use(o) > use) for o in there
        )
        if not beaten:
            kept.append(row)
    return sorted(kept, key=lambda row: (_asr(row), -_use(row)))


def pareto_chart(rows: Sequence[ComparedRow]) -> Markup:
    """Attack success against harmless use; empty where there is no harmless suite."""
    there = [row for row in rows if row.asr is not None and harmless_use(row) is not None]
    if not there:
        return Markup("")
    uses = [use for row in there if (use := harmless_use(row)) is not None]
    x = Scale(0.0, 100.0, 70, WIDTH - 30)
    least = 100 * min(use.low for use in uses)
    y = Scale(max(0.0, least - 3), 101.0, _HEIGHT, _TOP)
    parts = [svg.y_axis(y, x.start, x.end, "harmless use, percent")]
    best = [(x(100 * _asr(row)), y(100 * _use(row))) for row in front(there)]
    if len(best) > 1:
        parts.append(svg.path(best, "link", fill="none"))
    ahead = [row.name for row in front(there)]
    named = [row for row in there if row.name in ahead or row.group in ("bare", "care")]
    marks = {row.name: (x(100 * _asr(row)), y(100 * _use(row))) for row in there}
    upper = sorted(zip(there, uses, strict=True), key=lambda pair: pair[0].group == "care")
    parts += [_point(row, use, x, y) for row, use in upper]
    blocks = groups([ChartMark(svg.shorten(row.name, 30), *marks[row.name]) for row in named])
    within = Box(x.start + 4, _TOP - 6, WIDTH - 4, _HEIGHT - 2)
    parts.append(labels(blocks, within, list(marks.values())))
    lines = svg.x_axis(x, _TOP, _HEIGHT, "mean attack success, percent", x.ticks(6))
    title = "Attack success against harmless use"
    return svg.canvas(WIDTH, _HEIGHT + 46, title, _legend(there), lines, *parts)


def forest(rows: Sequence[ComparedRow]) -> Markup:
    """Mean attack success by row with its limits, lowest first; a tick for each further fit."""
    there = sorted((row for row in rows if row.asr is not None), key=_asr)
    if not there:
        return Markup("")
    left = label_width([row.name for row in there], 40)
    scale = Scale(0.0, 100.0, left, WIDTH - 190)
    top = 44.0
    bottom = top + _ROW * len(there) + 6
    ticks = (0, 20, 40, 60, 80, 100)
    grid = [svg.line(scale(t), top, scale(t), bottom, "grid") for t in ticks]
    care = next((row for row in there if row.name == CARE), None)
    if care is not None:
        at = scale(100 * _asr(care))
        grid.append(svg.line(at, top, at, bottom, "zero"))
    marks = [_bar(row, scale, top + _ROW * (place + 0.5)) for place, row in enumerate(there)]
    axis = svg.x_axis(scale, top, bottom, "mean attack success, percent", ticks)
    title = "Mean attack success of every row"
    return svg.canvas(WIDTH, bottom + 46, title, _legend(there), *grid, axis, *marks)


def cost_chart(rows: Sequence[ComparedRow]) -> Markup:
    """Seconds of an answer as a multiple of the bare model's; empty where nothing was timed."""
    there = [row for row in rows if row.cost is not None and row.cost.overhead is not None]
    if not there:
        return Markup("")
    there.sort(key=lambda row: row.cost.overhead or 0.0 if row.cost else 0.0)
    left = label_width([row.name for row in there], 40)
    most = max((row.cost.overhead or 0.0) if row.cost else 0.0 for row in there)
    scale = Scale(0.0, max(1.2, 1.05 * most), left, WIDTH - 90)
    bottom = 20.0 + _ROW * len(there) + 6
    parts = [svg.line(scale(1.0), 20, scale(1.0), bottom, "zero")]
    for place, row in enumerate(there):
        assert row.cost is not None and row.cost.overhead is not None
        y, ratio = 20 + _ROW * (place + 0.5), row.cost.overhead
        shape, look = LOOKS[row.group]
        words = tag("title", f"{row.name}: {number(ratio)} times the bare model's seconds")
        bar = svg.line(scale(0.0), y, scale(ratio), y, f"bar {look}")
        mark = svg.marker(shape, scale(ratio), y, look)
        parts += [
            svg.label(left - 12, y + 4, svg.shorten(row.name, 40), "end", "tick"),
            tag("g", words, bar, mark, class_="datum"),
            svg.label(scale(ratio) + 10, y + 4, f"× {number(ratio)}", class_="tick"),
        ]
    axis = svg.x_axis(
        scale, 20, bottom, "seconds, as a multiple of the bare model's", scale.ticks()
    )
    return svg.canvas(WIDTH, bottom + 46, "What an answer costs", axis, *parts)


def _point(row: ComparedRow, use: Interval, x: Scale, y: Scale) -> Markup:
    assert row.asr is not None
    shape, look = LOOKS[row.group]
    at, up = x(100 * row.asr.rate), y(100 * use.rate)
    words = f"{row.name}: attack success {told(row.asr)}, harmless use {told(use)}"
    return tag(
        "g",
        tag("title", words),
        svg.line(x(100 * row.asr.low), up, x(100 * row.asr.high), up, f"whisker {look}"),
        svg.line(at, y(100 * use.low), at, y(100 * use.high), f"whisker {look}"),
        svg.marker(shape, at, up, look),
        class_="datum",
    )


def _bar(row: ComparedRow, scale: Scale, y: float) -> Markup:
    assert row.asr is not None
    shape, look = LOOKS[row.group]
    low, high = scale(100 * row.asr.low), scale(100 * row.asr.high)
    fits = [
        svg.line(at, y - 6, at, y + 6, "base")
        for fit in row.fits[1:]
        for at in (scale(100 * fit.asr),)
    ]
    datum = tag(
        "g",
        tag("title", f"{row.name}: {told(row.asr)}"),
        svg.line(low, y, high, y, f"bar {look}"),
        *fits,
        svg.marker(shape, scale(100 * row.asr.rate), y, look),
        class_="datum",
    )
    name = svg.label(scale.start - 12, y + 4, svg.shorten(row.name, 40), "end", "tick")
    figures = f"{percent(row.asr.rate)} [{percent(row.asr.low)}, {percent(row.asr.high)}]"
    return svg.join([name, datum, svg.label(WIDTH - 174, y + 4, figures, class_="tick")])


def _legend(rows: Sequence[ComparedRow]) -> Markup:
    there = [group for group in LOOKS if any(row.group == group for row in rows)]
    return svg.legend([(*LOOKS[group], _WORDS[group]) for group in there], 20, 18, 130)


def _asr(row: ComparedRow) -> float:
    return 1.0 if row.asr is None else row.asr.rate


def _use(row: ComparedRow) -> float:
    use = harmless_use(row)
    return 0.0 if use is None else use.rate
