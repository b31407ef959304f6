"""What monitors decided, suite by suite: bars side by side for alarms and what followed, as SVG.

One panel for each thing that may happen to an answer, one row for each suite, so that a column is
read down for what a monitor does and a row across for what becomes of a suite. The share stands at
the end of each bar.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from care.evaluation.monitored import MonitorShares
from care.report import svg
from care.report.numbers import percent
from care.report.rate_charts import label_width
from care.report.svg import WIDTH, Scale, tag

FOLLOWED = {
    "lost_pictures": "picture left out",
    "repaired": "begun again",
    "refused": "refusal given",
}
"""Field of `MonitorShares` → what it is called."""
_ROW = 22.0
_GAP = 14.0
_TOP = 34.0


def shares_of(each: MonitorShares) -> dict[str, float]:
    """All shares of a suite by what they are called, alarms first."""
    names = sorted(each.alarmed, key=lambda name: name != "request")
    alarms = {f"{name}: alarm": each.alarmed[name] for name in names}
    return alarms | {words: getattr(each, field) for field, words in FOLLOWED.items()}


def monitors_chart(found: Sequence[MonitorShares]) -> Markup:
    """The suites of one defense; empty without any."""
    if not found:
        return Markup("")
    columns = list(shares_of(found[0]))
    left = label_width([each.suite for each in found])
    width = (WIDTH - left - 8) / len(columns)
    bottom = _TOP + _ROW * len(found)
    parts: list[Markup] = []
    for place, column in enumerate(columns):
        x = left + place * width
        scale = Scale(0.0, 1.0, x, x + width - _GAP - 46)
        parts.append(svg.label(x, _TOP - 12, column, class_="group"))
        parts.append(svg.line(x, _TOP - 4, x, bottom, "base"))
        for row, each in enumerate(found):
            parts.append(_bar(each, column, scale, _TOP + _ROW * row))
    for row, each in enumerate(found):
        middle = _TOP + _ROW * (row + 0.5) + 4
        parts.append(svg.label(left - 12, middle, svg.shorten(each.suite, 34), "end"))
    title = f"What the monitors of {found[0].defense} decided"
    return svg.canvas(WIDTH, bottom + 8, title, *parts)


def _bar(each: MonitorShares, column: str, scale: Scale, y: float) -> Markup:
    share = shares_of(each)[column]
    end = scale(share)
    look = "alarm" if column.endswith("alarm") else "followed"
    return tag(
        "g",
        tag("title", f"{each.suite}, {column}: {percent(share)} of {each.n} answers"),
        tag("rect", x=scale.start, y=y + 3, width=end - scale.start, height=_ROW - 6, class_=look),
        svg.label(end + 5, y + _ROW / 2 + 4, percent(share), class_="tick"),
        class_="datum",
    )
