"""Names of marks: every one once, none upon another."""

from __future__ import annotations

import re
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from care.report.chart_labels import LINE, NEAR, Box, ChartMark, groups, labels

WITHIN = Box(70, 50, 850, 450)
_TEXT = re.compile(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="name">([^<]*)')
places = st.tuples(st.integers(70, 830), st.integers(58, 450))


def boxes(chart: str) -> dict[str, Box]:
    """Where each name stands."""
    found = {}
    for x, y, anchor, name in _TEXT.findall(chart):
        left = float(x) - (5.9 * len(name) if anchor == "end" else 0)
        top = float(y) + 3 - LINE
        assert name not in found
        found[name] = Box(left, top, left + 5.9 * len(name), top + LINE)
    return found


@given(st.lists(places, min_size=1, max_size=16))
def test_every_name_is_there_once_and_upon_no_other(points: list[tuple[int, int]]) -> None:
    marks = [ChartMark(f"defense {place}", *point) for place, point in enumerate(points)]
    found = boxes(str(labels(groups(marks), WITHIN)))
    assert found.keys() == {mark.name for mark in marks}
    assert all(Box(69, 49, 851, 451).holds(box) for box in found.values())
    for one, other in combinations(found.values(), 2):
        assert not _within(one).meets(_within(other))


def _within(box: Box) -> Box:
    """The box less what is lost where coordinates are written with two decimals."""
    return Box(box.left + 0.05, box.top + 0.05, box.right - 0.05, box.bottom - 0.05)


def test_marks_at_one_place_are_lines_of_one_block_and_others_have_a_leader() -> None:
    same = [ChartMark(name, 300, 200) for name in ("one", "two", "three")]
    far = ChartMark("far", 300 + 2 * NEAR, 200)
    assert [[m.name for m in g] for g in groups([*same, far])] == [["one", "two", "three"], ["far"]]
    chain = [ChartMark(str(n), 300 + n * NEAR, 200) for n in range(4)]
    assert groups(chain) == [chain]
    assert groups([chain[0], chain[2], chain[1]]) == [[chain[0], chain[2], chain[1]]]
    found = boxes(str(labels([same], WITHIN)))
    assert {box.left for box in found.values()} == {found["one"].left}
    assert found["two"].top - found["one"].top == LINE
    crowd = [(300 + 16 * dx, 200 + 16 * dy) for dx in range(-2, 3) for dy in range(-2, 3)]
    chart = str(labels([same], WITHIN, crowd))
    assert 'class="leader"' in chart
    for box in boxes(chart).values():
        assert not any(box.meets(Box(x - 5, y - 5, x + 5, y + 5)) for x, y in crowd)


def test_names_of_one_place_may_stand_in_one_line() -> None:
    chart = str(
        labels([[ChartMark("0", 300, 200), ChartMark("0.25", 300, 201)]], WITHIN, joined=True)
    )
    assert list(boxes(chart)) == ["0, 0.25"]
