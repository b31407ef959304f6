"""Attacks against a defense, side by side: transfer, adaptive and certified, as table and chart.

    transfer    success of what was made without knowing the defense
    adaptive    of what was made through it
    certified   the most that anything in the picture can achieve beside these texts

Pure functions from the `threats` of a scorecard (table.json) to markup; each holds its intervals.
No threats give empty markup, and without any certificate that column is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from care.report import svg
from care.report.numbers import percent
from care.report.svg import WIDTH, Scale, tag

Tree = Mapping[str, Any]

_KINDS = (("transfer", "circle", "before"), ("adaptive", "diamond", "after"))
_CERTIFIED = ("certified", "square", "certified")
_ROW = 48


def threat_table(threats: Sequence[Tree]) -> Markup:
    """One row for each attack and defense: undefended, transfer, adaptive and certified rates."""
    if not threats:
        return Markup("")
    kinds = ["undefended", "transfer", "adaptive", *["certified"][: _certifies(threats)]]
    head = [tag("th", name.capitalize(), scope="col") for name in ("attack", "defense", *kinds)]
    rows = [
        tag(
            "tr",
            tag("th", each["attack"], scope="row"),
            tag("td", each["defense"]),
            *(tag("td", _told(kind, each.get(kind)), class_="n") for kind in kinds),
        )
        for each in threats
    ]
    return tag(
        "table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="figures threats"
    )


def threats_chart(threats: Sequence[Tree]) -> Markup:
    """The same rates as marks in rows, with their intervals."""
    if not threats:
        return Markup("")
    kinds = [*_KINDS, *[_CERTIFIED][: _certifies(threats)]]
    names = [f"{each['attack']}, {each['defense']}" for each in threats]
    left = min(300.0, 24 + 7 * max(map(len, names)))
    scale = Scale(0.0, 100.0, left, WIDTH - 20)
    bottom = 34.0 + _ROW * len(threats)
    ticks = list(range(0, 101, 20))
    rows = [
        _row(each, name, kinds, scale, 34 + _ROW * (place + 0.5))
        for place, (each, name) in enumerate(zip(threats, names, strict=True))
    ]
    legend = svg.legend([(shape, look, kind) for kind, shape, look in kinds], left, 16)
    grid = [svg.line(scale(t), 30, scale(t), bottom, "grid") for t in ticks]
    axis = svg.x_axis(scale, 30, bottom, "percent of requests", ticks)
    title = "Attack success: unaware of the defense, knowing it, and at most"
    return svg.canvas(WIDTH, bottom + 46, title, legend, *grid, axis, *rows)


def _row(
    each: Tree, name: str, kinds: Sequence[tuple[str, str, str]], scale: Scale, y: float
) -> Markup:
    parts = [svg.label(scale.start - 12, y + 4, svg.shorten(name, 42), "end")]
    for place, (kind, shape, look) in enumerate(kinds):
        cell = each.get(kind)
        if cell is None or cell["rate"] is None:
            continue
        at = y + 11 * (place - (len(kinds) - 1) / 2)
        x, low, high = (scale(100 * cell[key]) for key in ("rate", "low", "high"))
        parts.append(
            tag(
                "g",
                tag("title", f"{name}, {kind}: {_told(kind, cell)}, n = {cell['n']}"),
                svg.line(low, at, high, at, f"bar {look}"),
                svg.marker(shape, x, at, look),
                class_="datum",
            )
        )
    return svg.join(parts)


def _told(kind: str, cell: Tree | None) -> str:
    if cell is None or cell["rate"] is None:
        return ""
    most = "≤ " if kind == "certified" else ""
    return f"{most}{percent(cell['rate'])} [{percent(cell['low'])}, {percent(cell['high'])}]"


def _certifies(threats: Sequence[Tree]) -> bool:
    return any(each.get("certified") for each in threats)
