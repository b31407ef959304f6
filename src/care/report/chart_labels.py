"""Names of marks in a chart, none upon another, as inline SVG.

Marks that stand at nearly the same place make a group, whose names are lines of one block. A block
goes where it covers neither marks nor other blocks nor their leaders: beside its marks, or farther
off in a circle about them, with a leader line. Where nothing is free it goes where it covers least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from care.report import svg

NEAR = 9.0
"""Pixels between marks of one group at most, in a chain."""
LINE = 13.0
"""Height of a line of text."""
_LETTER = 5.9
"""Width of a letter at most, on average."""
_MARK = 8.0
_REACHES = (10.0, 20.0, 32.0, 46.0, 62.0, 80.0, 100.0, 122.0, 146.0, 172.0)
_ANGLES = (-45, 45, -135, 135, 0, 180, -90, 90, -20, 20, -160, 160, -70, 70, -110, 110)
"""Directions in which there is looked for room, in degrees from the right, downwards."""


class Box(NamedTuple):
    """A rectangle."""

    left: float
    """Least x."""
    top: float
    """Least y."""
    right: float
    """Greatest x."""
    bottom: float
    """Greatest y."""

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether the other lies within this one."""
        inside = self.left <= other.left and other.right <= self.right
        return inside and self.top <= other.top and other.bottom <= self.bottom


class ChartMark(NamedTuple):
    """A mark with its name."""

    name: str
    """What is written."""
    x: float
    """Where it stands."""
    y: float
    """Where it stands."""


def groups(marks: Sequence[ChartMark]) -> list[list[ChartMark]]:
    """Marks at nearly the same place together, in their order."""
    found: list[list[ChartMark]] = []
    for mark in marks:
        near = [g for g in found if any(math.dist(mark[1:], o[1:]) <= NEAR for o in g)]
        found = [g for g in found if g not in near]
        found.append([*(each for group in near for each in group), mark])
    return sorted(found, key=lambda group: min(map(marks.index, group)))


def labels(
    blocks: Sequence[Sequence[ChartMark]],
    within: Box,
    beside: Sequence[tuple[float, float]] = (),
    joined: bool = False,
) -> Markup:
    """The names of groups of marks; `beside` are other marks that no name covers.

    `joined` writes the names of a group in one line.
    """
    marks = [*((m.x, m.y) for block in blocks for m in block), *beside]
    taken = [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in marks]
    soft = len(taken)
    parts: list[Markup] = []
    # Those with least room first, which are those with most neighbours.
    for block in sorted(blocks, key=lambda one: -_crowd(one, marks)):
        lines = [mark.name for mark in block]
        lines = [", ".join(lines)] if joined else lines
        at = (sum(m.x for m in block) / len(block), sum(m.y for m in block) / len(block))
        box, leader = _room(at, lines, within, taken, soft)
        taken += [box, *leader]
        if leader:
            end = _nearest(at, box)
            parts.append(svg.line(*at, *end, "leader"))
        right = box.right <= at[0]
        parts += [
            svg.label(
                box.right if right else box.left,
                box.top + LINE * (place + 1) - 3,
                line,
                "end" if right else "start",
                "name",
            )
            for place, line in enumerate(lines)
        ]
    return svg.join(parts)


def _crowd(block: Sequence[ChartMark], marks: Sequence[tuple[float, float]]) -> int:
    return sum(math.dist((block[0].x, block[0].y), mark) < 60 for mark in marks)


def _room(
    at: tuple[float, float],
    lines: Sequence[str],
    within: Box,
    taken: Sequence[Box],
    soft: int,
) -> tuple[Box, list[Box]]:
    """Where a block goes, and what its leader line covers; none beside its marks.

    The first `soft` of what is taken are marks, of which the block's own lie under its leader.
    """
    width, height = _LETTER * max(map(len, lines)), LINE * len(lines)
    best: tuple[float, Box, list[Box]] | None = None
    for reach in _REACHES:
        for angle in _ANGLES:
            x = at[0] + reach * math.cos(math.radians(angle))
            y = at[1] + reach * math.sin(math.radians(angle))
            left = x if x >= at[0] - 1e-6 else x - width
            box = Box(left, y - height / 2, left + width, y + height / 2)
            box = _moved_in(box, within)
            if _covers(box, at):
                continue
            leader = _dots(at, _nearest(at, box)) if reach > _REACHES[0] else []
            met = sum(box.meets(each) for each in taken)
            met += sum(dot.meets(each) for each in taken[soft:] for dot in leader)
            if met == 0:
                return box, leader
            if best is None or met < best[0]:
                best = met, box, leader
    assert best is not None
    return best[1], best[2]


def _moved_in(box: Box, within: Box) -> Box:
    """The box moved as little as needed to lie within the chart."""
    x = max(within.left - box.left, 0.0) or min(within.right - box.right, 0.0)
    y = max(within.top - box.top, 0.0) or min(within.bottom - box.bottom, 0.0)
    return Box(box.left + x, box.top + y, box.right + x, box.bottom + y)


def _covers(box: Box, at: tuple[float, float]) -> bool:
    return box.meets(Box(at[0] - 5, at[1] - 5, at[0] + 5, at[1] + 5))


def _nearest(at: tuple[float, float], box: Box) -> tuple[float, float]:
    """The point of a box that lies nearest."""
    return min(max(at[0], box.left), box.right), min(max(at[1], box.top), box.bottom)


def _dots(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Small boxes along a line, but for its end at the mark."""
    steps = max(2, int(math.dist(start, end) / 5))
    points = [
        (
            start[0] + (end[0] - start[0]) * place / steps,
            start[1] + (end[1] - start[1]) * place / steps,
        )
        for place in range(1, steps + 1)
    ]
    return [
        Box(min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]) + 0.5, max(a[1], b[1]) + 0.5)
        for a, b in pairwise(points[:-1] or points)
    ]
