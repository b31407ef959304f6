"""Charts of what tells a finding from an accident: faithfulness curves, estimate against exact.

Pure functions from parts of the `diagnosis` tree to inline SVG. Random rankings and controls are
grey, dashed or square, the finding itself is a solid line or round; the numbers are in the tables
beside the charts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from care.report import svg
from care.report.svg import WIDTH, Scale, tag

_EMPTY = Markup("")
_PANELS = (
    ("faithfulness", "Only the best k kept: share of the behaviour"),
    ("completeness", "The best k removed: share that is left"),
)


def faithfulness_curves(curve: Mapping[str, Any]) -> Markup:
    """Both curves of one ranking over set size, with the band of random rankings."""
    points = [point for point in curve["points"] if point["size"] > 0]
    ends = [
        point[name][key]
        for point in points
        for name in ("faithfulness", "completeness")
        for key in ("low", "high")
    ]
    ends += [
        point[f"random_{name}"][key]
        for point in points
        for name in ("faithfulness", "completeness")
        for key in ("low", "high")
    ]
    limits = svg.padded(ends, [0.0, 1.0])
    width = (WIDTH - 112.0) / 2
    panels = [
        _curve_panel(points, name, title, 48.0 + i * (width + 44.0), width, limits)
        for i, (name, title) in enumerate(_PANELS)
    ]
    legend = svg.legend(
        [("circle", "plain", "the ranking"), ("square", "random", "random rankings")], 48.0, 16, 120
    )
    title = f"Faithfulness and completeness of the ranked {curve['units']}"
    return svg.canvas(WIDTH, 330, title, *panels, legend)


def _curve_panel(
    points: Sequence[Mapping[str, Any]],
    name: str,
    title: str,
    left: float,
    width: float,
    limits: tuple[float, float],
) -> Markup:
    sizes = [point["size"] for point in points]
    x = Scale(float(sizes[0]), float(max(sizes[-1], sizes[0] + 1)), left, left + width, log=True)
    y = Scale(*limits, 276.0, 66.0)
    spread, random = (
        [[(x(p["size"]), y(p[key][end])) for p in points] for end in ("low", middle, "high")]
        for key, middle in ((name, "rate"), (f"random_{name}", "mean"))
    )
    parts = [
        svg.label(left - 36, 44, title, class_="group"),
        svg.y_axis(y, x.start, x.end),
        svg.x_axis(x, 66, 276, "units, log scale", _size_ticks(sizes)),
        svg.line(x.start, y(0.0), x.end, y(0.0), "zero"),
        svg.line(x.start, y(1.0), x.end, y(1.0), "zero"),
        svg.path(random[0] + random[2][::-1], "spread random", close=True),
        svg.path(random[1], "curve random"),
        svg.path(spread[0] + spread[2][::-1], "spread plain", close=True),
        svg.path(spread[1], "curve plain"),
    ]
    for point in points:
        figure, chance = point[name], point[f"random_{name}"]
        low, middle, high = (svg.number(round(figure[k], 2)) for k in ("low", "rate", "high"))
        words = (
            f"{point['size']} units: {middle} [{low}, {high}]; random: "
            f"{svg.number(round(chance['mean'], 2))} [{svg.number(round(chance['low'], 2))}, "
            f"{svg.number(round(chance['high'], 2))}]"
        )
        at = x(point["size"])
        marks = [
            svg.marker("square", at, y(chance["mean"]), "random", 2.5),
            svg.marker("circle", at, y(figure["rate"]), "plain", 3.5),
        ]
        parts.append(tag("g", tag("title", words), *marks, class_="datum"))
    return svg.join(parts)


def _size_ticks(sizes: Sequence[int]) -> list[float]:
    """The sizes themselves, without those that would be printed over their neighbours."""
    ticks = [float(sizes[0])]
    for size in sizes[1:]:
        if size >= 1.45 * ticks[-1]:
            ticks.append(float(size))
    return ticks


def neuron_scatter(neurons: Mapping[str, Any]) -> Markup:
    """Exact effect with its interval against the estimate, of found neurons and controls."""
    items = [*neurons["found"], *neurons["controls"]]
    if not items:
        return _EMPTY
    x = Scale(*svg.padded([item["estimate"] for item in items], [0.0]), 72.0, WIDTH - 20.0)
    ends = [item[key] for item in items for key in ("low", "exact", "high")]
    y = Scale(*svg.padded(ends, [0.0]), 276.0, 52.0)
    parts = [
        svg.y_axis(y, x.start, x.end, "exact effect, nats"),
        svg.x_axis(x, 52, 276, "estimated effect, nats", x.ticks(8)),
        svg.line(x.start, y(0.0), x.end, y(0.0), "zero"),
        _diagonal(x, y),
    ]
    for key, shape, class_ in (("controls", "square", "random"), ("found", "circle", "plain")):
        parts += [_neuron_point(item, x, y, shape, class_) for item in neurons[key]]
    legend = svg.legend(
        [("circle", "plain", "found"), ("square", "random", "random controls")], x.start, 16
    )
    note = svg.label(x.end, 16, "dashed: estimate = exact", "end", "tick")
    return svg.canvas(WIDTH, 330, "Estimated and exact effects of neurons", *parts, legend, note)


def _diagonal(x: Scale, y: Scale) -> Markup:
    """The part of the line exact = estimate that lies inside both axes."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    return svg.line(x(low), y(low), x(high), y(high), "link") if low < high else _EMPTY


def _neuron_point(item: Mapping[str, Any], x: Scale, y: Scale, shape: str, class_: str) -> Markup:
    at = x(item["estimate"])
    exact, low, high, estimate = (
        svg.number(item[key]) for key in ("exact", "low", "high", "estimate")
    )
    words = (
        f"layer {item['layer']}, neuron {item['neuron']}: estimate {estimate}, exact {exact} "
        f"[{low}, {high}]"
    )
    return tag(
        "g",
        tag("title", words),
        svg.line(at, y(item["low"]), at, y(item["high"]), f"whisker {class_}"),
        svg.marker(shape, at, y(item["exact"]), class_, 4.0 if class_ == "plain" else 3.0),
        class_="datum",
    )
