"""The forest plot of an ablation: what each change does to attack success, as inline SVG.

One row for each change of a method, under that method, with the difference of attack success and
its interval about the line of no difference. A filled mark is a difference that the corrected test
shows (p < 0.05), a hollow one is none. Figures stand beside the plot as text.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from care.evaluation.ablation_table import AblationRow
from care.report import svg
from care.report.numbers import p_value, percent, points
from care.report.svg import WIDTH, Scale, tag

LEVEL = 0.05
"""p, corrected over all rows, below which a mark is filled."""
_ROW = 22.0
_FIGURES = 210.0
"""Pixels of the text at the right."""


def forest_chart(rows: Sequence[AblationRow]) -> Markup:
    """Change of attack success by row, in points; empty where no row changes a method."""
    changed = [row for row in rows if row.of != row.name]
    if not changed:
        return Markup("")
    names = [_short(row) for row in changed]
    left = 30 + 6.8 * min(max(map(len, names)), 44)
    ends = [100 * end for row in changed if row.against for end in _ends(row)]
    low, high = svg.padded(ends, [0.0])
    scale = Scale(low, high, left, WIDTH - _FIGURES)
    top = 44.0
    y, parts = top, list[Markup]()
    for method in dict.fromkeys(row.of for row in changed):
        whole = next(row for row in rows if row.name == method)
        rate = "" if whole.asr is None else f", attack success {percent(whole.asr.rate)}"
        parts.append(svg.label(8, y + 16, f"{method}{rate}", class_="group"))
        y += 28
        for row in changed:
            if row.of == method:
                parts.append(_row(row, scale, y + _ROW / 2))
                y += _ROW
        y += 8
    bottom = y + 2
    ticks = scale.ticks(6)
    grid = [svg.line(scale(t), top, scale(t), bottom, "grid") for t in ticks]
    zero = svg.line(scale(0), top, scale(0), bottom, "zero")
    head = [
        svg.label(WIDTH - _FIGURES + 16, top - 8, "change, points", class_="axis"),
        svg.label(WIDTH - 8, top - 8, "p (Holm)", "end", "axis"),
        svg.label(scale(0) - 8, top - 8, "fewer attacks pass \N{LEFTWARDS ARROW}", "end", "axis"),
        svg.label(scale(0) + 8, top - 8, "\N{RIGHTWARDS ARROW} more", class_="axis"),
    ]
    axis = svg.x_axis(scale, top, bottom, "change of attack success, points", ticks)
    title = "What each change does to attack success"
    return svg.canvas(WIDTH, bottom + 46, title, *grid, zero, *head, axis, *parts)


def _row(row: AblationRow, scale: Scale, y: float) -> Markup:
    name = svg.label(scale.start - 12, y + 4, svg.shorten(_short(row), 44), "end", "tick")
    if row.against is None:
        words = "not fitted" if row.failed else "not compared"
        return name + svg.label(WIDTH - _FIGURES + 16, y + 4, words, class_="tick")
    change, p = row.against.change, row.against.p_holm
    look = "after" if p < LEVEL else "before"
    x, low, high = (scale(100 * value) for value in (change.rate, change.low, change.high))
    told = f"{points(100 * change.rate)} [{points(100 * change.low)}, {points(100 * change.high)}]"
    datum = tag(
        "g",
        tag("title", f"{row.name}: {told} points, p = {p_value(p)}"),
        svg.line(low, y, high, y, f"bar {look}"),
        svg.marker("square" if p < LEVEL else "circle", x, y, look),
        class_="datum",
    )
    figures = svg.label(WIDTH - _FIGURES + 16, y + 4, told, class_="tick")
    return svg.join([name, datum, figures, svg.label(WIDTH - 8, y + 4, p_value(p), "end", "tick")])


def _short(row: AblationRow) -> str:
    """What is changed, without the name of the method before it."""
    return row.name.removeprefix(f"{row.of}: ")


def _ends(row: AblationRow) -> tuple[float, float]:
    return (row.against.change.low, row.against.change.high) if row.against else (0.0, 0.0)
