"""The report's charts: pixels from the axes' geometry."""

import re
from typing import Any

import pytest

from care.report import charts, diagnosis_charts, heatmap_chart, svg
from kit.reports import OUTCOMES, figures, tree  # noqa: F401


def test_stacked_bars_have_the_right_widths() -> None:
    counts: dict[str, int] = dict(zip(OUTCOMES, (10, 20, 30, 40), strict=True))
    strip = str(charts.outcome_strip(counts, "x"))
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="18" class="o-', strip)]
    if not widths:
        found = re.findall(r'<rect class="o-\w+" x="[\d.]+" y="0" width="([\d.]+)"', strip)
        widths = [float(w) for w in found]
    assert widths == [24.0, 48.0, 72.0, 96.0]


def test_bars_stand_under_their_suite_one_for_each_side() -> None:
    some: dict[str, int] = dict(zip(OUTCOMES, (1, 2, 3, 4), strict=True))
    counts = {"a suite": {"none": some, "care": some, "x" * 30: dict.fromkeys(OUTCOMES, 0)}}
    chart = str(charts.outcome_bars(counts))
    assert chart.count('class="o-refused"') == 2
    assert "a suite, care: 2 of 10 refused (20.0%)" in chart
    assert "x" * 19 + "\N{HORIZONTAL ELLIPSIS}" in chart and "x" * 20 not in chart


def test_the_channel_scan_draws_every_figure(tree: dict[str, Any]) -> None:
    """Two layers of three: pixels from the axes' geometry, order from the layers."""
    keys = ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low")
    rows = {2: (0.5, 0.25, 0.75, 0.125, 0.375, 0.125), 0: (0.0, -0.25, 0.25, 0.0, 0.0, -0.25)}
    sites = [
        {"site": f"{layer}.layer_out", "layer": layer, "recommended": layer == 2}
        | dict(zip(keys, row, strict=True))
        | {"modality": modality, "n_attacks": 8, "n_benign": 8}
        for modality, shift in (("image", 0.0), ("text", 0.01))
        for layer, row in ((layer, [v + shift for v in row]) for layer, row in rows.items())
    ]
    scan = {"metric": "m", "rule": "r", "sites": sites}
    chart = str(diagnosis_charts.channel_scan({"channels": scan, "n_layers": 3}, "image"))

    def y(points: float) -> float:  # -25 to 75 widened by 5% of the range, on pixels 300 to 58
        return 300 - (points + 30) / 110 * 242

    band = re.search(r'<path d="M([^"]+)Z" class="band c-attack"', chart)
    assert band is not None
    corners = [[float(v) for v in pair.split(",")] for pair in band[1].split("L")]
    wanted = [(64, -25), (840, 25), (840, 75), (64, 25)]
    assert corners == [pytest.approx([x, y(value)], abs=0.01) for x, value in wanted]
    benign = re.search(r'<path d="M([^"]+)" class="curve c-benign"', chart)
    assert benign is not None
    last = benign[1].split("L")[1].split(",")
    assert [float(v) for v in last] == pytest.approx([840, y(12.5)], abs=0.01)
    rings = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" class="ring"', chart)
    assert len(rings) == 2  # the legend's and that of the recommended site
    assert [float(v) for v in rings[0]] == pytest.approx([840, y(50)], abs=0.01)
    assert "image channel at 2.layer_out: attacks +50.0 points [+25.0, +75.0], benign" in chart
    assert "text channel" not in chart


def test_the_layer_scan_tells_its_selectivity(tree: dict[str, Any]) -> None:
    item = tree["diagnosis"]["layers"][0]
    item |= {"benign_effect": 0.25, "selectivity": 1.25, "selectivity_low": -0.5}
    chart = str(diagnosis_charts.layer_curves(tree["diagnosis"]))
    assert "benign 0.25, selectivity 1.25 (at least \N{MINUS SIGN}0.5)" in chart


def test_heatmap_cells_follow_the_row_major_grid(tree: dict[str, Any]) -> None:
    example = tree["attribution"]["examples"][0]
    example |= {"grid": [2, 4], "visual_scores": [0, 0, 0, 0, 0, 0, 5.0, 2.5]}
    cells = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="70" height="140" fill-opacity="([\d.]+)"',
        str(charts.image_heatmap(example)),
    )
    assert cells == [("140", "140", "0.8"), ("210", "140", "0.4")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3, 4, [-2, 0, 2, 4]), (5, 5, [5])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert svg.round_ticks(low, high, 5) == pytest.approx(expected)


def test_scales() -> None:
    scale = svg.Scale(0, 10, 100, 0)
    assert scale(5) == 50
    log = svg.Scale(1, 100, 0, 10, log=True)
    assert log(10) == pytest.approx(5) and log.ticks() == [1, 10, 100]


# --- the diagnosis ------------------------------------------------------------------------------


def cell(layer: int, effect: float, half: float, **where: Any) -> dict[str, Any]:
    row = {"layer": layer, "component": "ffn", "window": 1, "intervention": "mean"} | where
    return row | figures(effect, half) | {"relative_norm": 0.5}


def test_the_heatmap_puts_each_cell_in_its_place() -> None:
    """Two windows of one component: 130 wide at most, 17 high, panels 40 apart."""
    cells = [cell(0, 2.0, 0.5), cell(1, -1.0, 0.5), cell(1, 0.2, 0.5, window=3)]
    found = {"heatmap": cells, "n_layers": 3, "recommended": [{"site": "0.ffn_out"}]}
    chart = str(heatmap_chart.heatmap(found))
    colours = re.findall(
        r'<rect class="cell (more|less)" fill-opacity="([\d.]+)" x="([\d.]+)" y="([\d.]+)" '
        r'width="129" height="16"',
        chart,
    )
    assert colours == [
        ("more", "0.9", "44", "84"),
        ("less", "0.45", "44", "101"),
        ("more", "0.09", "214", "101"),
    ]
    values = re.findall(r'class="(value[^"]*)">([^<]+)<', chart)
    minus = "\N{MINUS SIGN}"
    assert values == [("value clear dark", "2"), ("value clear", f"{minus}1"), ("value", "0.2")]
    frames = re.findall(r'<rect class="frame" x="44" y="84"', chart)
    assert len(frames) == 1
    assert "FFN of layer 0, mean: 2 [1.5, 2.5], benign 0.2, selectivity 1.8 (at least 1.2)" in chart
    assert "FFN of layers 0 to 2, mean: 0.2" in chart and "Windows of 3 layers" in chart


def test_a_heatmap_of_many_columns_has_dots_for_numbers() -> None:
    ways = [f"way {k}" for k in range(12)]
    cells = [cell(k, 1.0, 0.1 + k, intervention=way) for way in ways for k in range(2)]
    cells += [item | {"window": 3} for item in cells]
    chart = str(heatmap_chart.heatmap({"heatmap": cells, "n_layers": 80, "recommended": []}))
    assert 'class="value' not in chart
    assert chart.count('class="dot"') == 2 * len(ways)  # the intervals at layer 0 are without 0
    assert "dot: interval without 0" in chart


@pytest.mark.parametrize(
    ("layer", "window", "words"),
    [(4, 1, "layer 4"), (4, 3, "layers 3 to 5"), (0, 3, "layers 0 to 1"), (9, 3, "layers 8 to 9")],
)
def test_windows_are_named_by_their_layers(layer: int, window: int, words: str) -> None:
    assert heatmap_chart.window_words(layer, window, 10) == words


def test_empty_parts_draw_nothing() -> None:
    assert heatmap_chart.heatmap({"heatmap": []}) == ""
    assert diagnosis_charts.neuron_scatter({"found": [], "controls": []}) == ""


def test_curves_follow_the_points(tree: dict[str, Any]) -> None:
    """Pixels of the two panels from the axes' geometry: sizes on a log scale, F from the range."""
    curve = tree["diagnosis"]["trust"]["faithfulness"][0]

    def flat(value: float) -> dict[str, float]:
        return {"rate": value, "mean": value, "low": value, "high": value}

    sizes, kept, left = (0, 1, 10, 100), (0.0, 0.2, 0.6, 1.0), (1.0, 0.5, 0.1, 0.0)
    names = ("faithfulness", "completeness")
    curve["points"] = [
        {"size": size, "metric": flat(0.0)}
        | {name: flat(values[at]) for name, values in zip(names, (kept, left), strict=True)}
        | {f"random_{name}": flat(0.5) for name in names}
        for at, size in enumerate(sizes)
    ]
    chart = str(diagnosis_charts.faithfulness_curves(curve))
    curves = re.findall(r'<path d="M([^"]+)" class="curve plain"', chart)
    found = [[[float(v) for v in pair.split(",")] for pair in one.split("L")] for one in curves]

    def y(value: float) -> float:  # 0 to 1 widened by 5% on pixels 276 to 66
        return 276 - (value + 0.05) / 1.1 * 210

    for left_end, values, points in zip((48, 466), (kept, left), found, strict=True):
        xs = [left_end, left_end + 187, left_end + 374]
        wanted = [[x, y(value)] for x, value in zip(xs, values[1:], strict=True)]
        assert points == [pytest.approx(pair, abs=0.01) for pair in wanted]
    assert "10 units: 0.6 [0.6, 0.6]; random: 0.5 [0.5, 0.5]" in chart


def test_estimates_are_drawn_against_exact_effects(tree: dict[str, Any]) -> None:
    neurons = tree["diagnosis"]["neurons"]
    chart = str(diagnosis_charts.neuron_scatter(neurons))
    marks = r'<(?:circle|rect|path)[^>]*class="mark (plain|random)"'
    classes = re.findall(marks, chart)
    assert classes.count("plain") == len(neurons["found"]) + 1  # and the legend's
    assert classes.count("random") == len(neurons["controls"]) + 1
    assert chart.count('class="whisker') == len(neurons["found"]) + len(neurons["controls"])
    assert "layer 12, neuron 100: estimate" in chart


@pytest.mark.parametrize(
    "chart",
    [
        charts.before_after([]),
        charts.outcome_bars({}),
        charts.spectrum({"eigenvalues": []}),
        charts.selection_scatter([]),
        charts.image_heatmap({"image": None}),
        diagnosis_charts.channel_scan({"channels": None}, "image"),
        diagnosis_charts.layer_curves({"layers": []}),
        diagnosis_charts.separability_curves({"separability": []}),
    ],
)
def test_without_figures_there_is_no_chart(chart: str) -> None:
    assert chart == ""


def test_without_scores_nothing_is_scaled() -> None:
    assert charts.unit_scores([]) == []
