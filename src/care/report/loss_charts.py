"""Loss curves of searches as small multiples, as inline SVG.

A panel for each attack and what it was made on, all with one logarithmic scale of losses, so that
what came to nothing and what is stuck can be told apart at a glance. Each line is one picture or
suffix: drawn through, with a dot at its end, where the search was flat, and dashed, with a ring,
where it still fell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from care.evaluation.losses import AttackLosses, LossCurve
from care.report import svg
from care.report.numbers import number
from care.report.svg import WIDTH, Scale, tag

_COLUMNS = 3
_WIDTH = (WIDTH - 8) / _COLUMNS
_HEIGHT = 178.0
_LEAST = 1e-3
_AXES = "upwards: nats a token, log scale; across: steps"
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 44.0, 136.0


def losses_chart(groups: Sequence[AttackLosses]) -> Markup:
    """All panels, three in a row; empty without any."""
    if not groups:
        return Markup("")
    told = [loss for group in groups for curve in group.curves for loss in _told(curve)]
    ends = [max(min(told), _LEAST), max(*told, _LEAST)]
    low, high = math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1]))
    range_ = (10.0**low, 10.0 ** max(high, low + 1))
    rows = -(-len(groups) // _COLUMNS)
    legend = [("circle", "plain", "flat at its end"), ("ring", "open-end", "still fell: a floor")]
    panels = [
        _panel(group, (place % _COLUMNS) * _WIDTH, 26 + (place // _COLUMNS) * _HEIGHT, range_)
        for place, group in enumerate(groups)
    ]
    title = "Loss of each search, step by step"
    parts = [svg.legend(legend, _LEFT, 14, 150), svg.label(_LEFT + 340, 14, _AXES, class_="axis")]
    return svg.canvas(WIDTH, 26 + rows * _HEIGHT, title, *parts, *panels)


def _panel(group: AttackLosses, x: float, y: float, range_: tuple[float, float]) -> Markup:
    longest = max(curve.steps for curve in group.curves)
    across = Scale(1, max(longest, 2), x + _LEFT, x + _WIDTH - _RIGHT)
    up = Scale(*range_, y + _BOTTOM, y + _TOP, log=True)
    ticks = [t for t in svg.round_ticks(1, across.high, 4) if t == int(t)]
    fell = f"{group.falling} of {group.searches} still fell" if group.falling else "all flat"
    few = f", {len(group.curves)} shown" if len(group.curves) < group.searches else ""
    parts = [
        svg.label(x + 8, y + 14, svg.shorten(group.attack, 34), class_="group"),
        svg.label(
            x + 8, y + 30, f"on {svg.shorten(group.defense, 20)}: {fell}{few}", class_="tick"
        ),
        svg.y_axis(up, across.start, across.end),
        svg.x_axis(across, up.end, up.start, "", ticks),
    ]
    faint = "faint" if len(group.curves) > 4 else "plain"
    return svg.join([*parts, *(_line(group, curve, across, up, faint) for curve in group.curves)])


def _line(group: AttackLosses, curve: LossCurve, across: Scale, up: Scale, look: str) -> Markup:
    last = max(len(curve.losses) - 1, 1)
    points = [
        (across(1 + place * (curve.steps - 1) / last), up(max(loss, up.low)))
        for place, loss in enumerate(curve.losses)
    ]
    ended = "still fell" if curve.falling else "flat"
    end = (across(curve.steps), up(max(curve.loss, up.low)))
    words = (
        f"{group.attack} on {group.defense}, {curve.name}: {number(curve.loss)} nats a token after "
        f"{curve.steps} steps, {ended}"
    )
    style = f"curve {look}{' open-end' if curve.falling else ''}"
    mark = ("ring", "open-end") if curve.falling else ("circle", "plain")
    return tag(
        "g",
        tag("title", words),
        svg.path(points, style),
        svg.marker(mark[0], *end, mark[1], size=2.6),
        class_="datum",
    )


def _told(curve: LossCurve) -> tuple[float, ...]:
    return (*curve.losses, curve.loss)
