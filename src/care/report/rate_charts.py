"""Rates with their intervals as marks in rows, as inline SVG: of suites, attacks and defenses.

There is a row for each thing that was asked, and in it a mark for each *side*: before and after,
each defense, or transfer, adaptive and certified. Sides differ in shape as well as in colour. Where
there is no rate there is no mark. Without rows the markup is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from markupsafe import Markup

from care.report import svg
from care.report.numbers import percent
from care.report.svg import WIDTH, Scale, tag

STEP = 12.0
"""Pixels between two marks of a row."""
_GAP = 10.0
_TICKS = (0, 20, 40, 60, 80, 100)


class Rate(Protocol):
    """A share with its limits; none of all three where nothing was answered."""

    @property
    def rate(self) -> float | None:
        """The share."""
        ...

    @property
    def low(self) -> float | None:
        """Lower limit."""
        ...

    @property
    def high(self) -> float | None:
        """Upper limit."""
        ...

    @property
    def n(self) -> int:
        """Number of observations; 0 where it isn't told."""
        ...


class Side(NamedTuple):
    """One mark of every row."""

    name: str
    """What the legend calls it."""
    shape: str
    """Shape of its mark (`care.report.svg.marker`)."""
    look: str
    """Class of its colours."""
    bound: bool = False
    """Whether its rates are upper bounds."""


class RateRow(NamedTuple):
    """One row of marks."""

    name: str
    """Its label."""
    cells: tuple[Rate | None, ...]
    """A rate for each side."""
    group: str = ""
    """Heading over it and its neighbours; none without one."""


BEFORE_AFTER = (Side("before", "circle", "before"), Side("after", "diamond", "after"))
BARE = Side("none", "circle", "before")
"""The bare model's mark; that of a repair is the `after` of before and after."""
_LOOKS = (
    ("diamond", "after"),
    ("triangle", "side-1"),
    ("square", "side-2"),
    ("drop", "side-3"),
    ("square", "side-4"),
)


def sides_of(defenses: Sequence[str], bare: str, parts: Sequence[str]) -> list[Side]:
    """A side for each defense: the bare model's circle, a diamond for the first whole one.

    `parts` are the names of those that are parts of another. With more defenses than looks, looks
    come again.
    """
    others = sorted((name for name in defenses if name != bare), key=lambda name: name in parts)
    looks = {name: _LOOKS[place % len(_LOOKS)] for place, name in enumerate(others)}
    return [BARE if name == bare else Side(name, *looks[name]) for name in defenses]


def rates_chart(
    rows: Sequence[RateRow], sides: Sequence[Side], title: str, axis: str = "percent of examples"
) -> Markup:
    """The rows under their headings, neighbours of one group together."""
    if not rows:
        return Markup("")
    left = label_width([row.name for row in rows], 42)
    legend, top = _legend(sides, left)
    scale = Scale(0.0, 100.0, left, WIDTH - 20)
    height = STEP * len(sides) + _GAP
    parts: list[Markup] = []
    y, group = top + 7.0, ""
    for row in rows:
        if row.group != group:
            y += _GAP if group else 0.0
            group = row.group
            parts.append(svg.label(8, y + 11, group, class_="group"))
            y += 23
        parts.append(_row(row, sides, scale, y + height / 2))
        y += height
    bottom = y + 6
    grid = [svg.line(scale(t), top, scale(t), bottom, "grid") for t in _TICKS]
    lines = svg.x_axis(scale, top, bottom, axis, _TICKS)
    return svg.canvas(WIDTH, bottom + 46, title, legend, *grid, lines, *parts)


def told(rate: Rate, bound: bool = False) -> str:
    """A rate with its limits, as a percentage; with ≤ where it is a bound."""
    most = "\N{LESS-THAN OR EQUAL TO} " if bound else ""
    return f"{most}{percent(rate.rate)} [{percent(rate.low)}, {percent(rate.high)}]"


def label_width(names: Sequence[str], limit: int = 34) -> float:
    """Pixels for the longest of the names, of which `limit` characters are shown."""
    return 24 + 7.2 * min(max((len(name) for name in names), default=0), limit)


def _row(row: RateRow, sides: Sequence[Side], scale: Scale, y: float) -> Markup:
    parts = [svg.label(scale.start - 12, y + 4, svg.shorten(row.name, 42), "end")]
    marks: list[Markup] = []
    places: list[tuple[float, float]] = []
    for place, (side, cell) in enumerate(zip(sides, row.cells, strict=True)):
        if cell is None or cell.rate is None or cell.low is None or cell.high is None:
            continue
        at = y + STEP * (place - (len(sides) - 1) / 2)
        x, low, high = (scale(100 * value) for value in (cell.rate, cell.low, cell.high))
        of = f", n = {cell.n}" if cell.n else ""
        words = tag("title", f"{row.name}, {side.name}: {told(cell, side.bound)}{of}")
        bar = svg.line(low, at, high, at, f"bar {side.look}")
        mark = svg.marker(side.shape, x, at, side.look, size=5.5 if len(sides) < 4 else 4.8)
        marks.append(tag("g", words, bar, mark, class_="datum"))
        places.append((x, at))
    if len(sides) == len(places) == 2:
        parts.append(svg.line(*places[0], *places[1], "link"))
    return svg.join([*parts, *marks])


def _legend(sides: Sequence[Side], left: float) -> tuple[Markup, float]:
    """All sides with their marks, in as many lines as they take, and where the chart begins."""
    names = [svg.shorten(side.name, 34) for side in sides]
    step = max(110.0, 40 + 7 * max(map(len, names)))
    x = left if left + step * len(sides) <= WIDTH else 8.0
    many = max(1, int((WIDTH - x) // step))
    lines = [
        svg.legend(
            [(s.shape, s.look, n) for s, n in zip(sides, names, strict=True)][at : at + many],
            x,
            16 + 18 * (at // many),
            step,
        )
        for at in range(0, len(sides), many)
    ]
    return svg.join(lines), 30.0 + 18 * (len(lines) - 1)
