"""Charts of a diagnosis: effects and separability by layer, faithfulness, neurons; inline SVG.

Pure functions from parts of the `diagnosis` tree. Series differ in marker, not only in colour;
random rankings and controls are grey, dashed or square, the finding itself is a solid line or
round. An empty part gives empty markup. Numbers are also in the tables beside the charts. The
heatmap has its own module.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from care.report import svg
from care.report.numbers import number, points
from care.report.svg import WIDTH, Scale, tag

_COMPONENTS = {"ffn": "FFN", "mhsa": "MHSA", "layer": "whole layer"}
_KINDS = {"ffn": "ffn_out", "mhsa": "mhsa_out", "layer": "layer_out"}
_SHAPES = {"ffn": "circle", "mhsa": "square", "layer": "diamond"}
_EMPTY = Markup("")
_PANELS = (
    ("faithfulness", "Only the best k kept: share of the behaviour"),
    ("completeness", "The best k removed: share that is left"),
)


# --- layers ---------------------------------------------------------------------------------------


def channel_scan(diagnosis: Mapping[str, Any], modality: str) -> Markup:
    """Share refused by the layer of the one channel closed: attacks with interval, benign."""
    scanned = (diagnosis["channels"] or {"sites": []})["sites"]
    items = sorted((item for item in scanned if item["modality"] == modality), key=_layer)
    if not items:
        return _EMPTY
    ends = [100 * item[key] for item in items for key in ("low", "high", "benign_effect")]
    x, y, axes = _layer_axes(
        diagnosis["n_layers"], svg.padded(ends, [0.0]), 300, "share refused, %"
    )
    benign = [(x(item["layer"]), y(100 * item["benign_effect"])) for item in items]
    parts = [
        axes,
        svg.line(x.start, y(0.0), x.end, y(0.0), "zero"),
        _band(items, x, y, "c-attack", 100.0),
        svg.path(benign, "curve c-benign"),
        *(_scanned_point(item, x, y) for item in items),
    ]
    entries = [("circle", "c-attack", "attacks"), ("square", "c-benign", "benign requests")]
    if any(item["recommended"] for item in items):
        entries.append(("ring", "ring", "recommended site"))
    legend = svg.legend(entries, x.start, 16, step=140)
    return svg.canvas(
        WIDTH, 352, f"Effect of closing the {modality} channel at each layer alone", *parts, legend
    )


def _scanned_point(item: Mapping[str, Any], x: Scale, y: Scale) -> Markup:
    """Both markers of one layer, with all its figures as the tooltip."""
    at, effect = x(item["layer"]), y(100 * item["effect"])
    low, high = (points(100 * item[key]) for key in ("low", "high"))
    words = (
        f"{item['modality']} channel at {item['site']}: attacks "
        f"{points(100 * item['effect'])} points [{low}, {high}], "
        f"benign {points(100 * item['benign_effect'])}, "
        f"selectivity {points(100 * item['selectivity'])} "
        f"(at least {points(100 * item['selectivity_low'])})"
    )
    parts = [
        svg.marker("square", at, y(100 * item["benign_effect"]), "c-benign", size=3.0),
        svg.marker("circle", at, effect, "c-attack", size=3.5),
    ]
    if item["recommended"]:
        parts.append(svg.marker("ring", at, effect, "ring", size=6.2))
    return tag("g", tag("title", words), *parts, class_="datum")


def layer_curves(diagnosis: Mapping[str, Any]) -> Markup:
    """Effect of ablating each component by layer, with intervals; recommended sites ringed."""
    effects = diagnosis["layers"]
    if not effects:
        return _EMPTY
    x, y, axes = _layer_axes(
        diagnosis["n_layers"],
        svg.padded([item[key] for item in effects for key in ("low", "high")], [0.0]),
        300,
        diagnosis["metric"],
    )
    sites = {item["site"] for item in diagnosis["recommended"]}
    parts = [axes, svg.line(x.start, y(0.0), x.end, y(0.0), "zero")]
    present = [c for c in _COMPONENTS if any(item["component"] == c for item in effects)]
    for component in present:
        own = [item for item in effects if item["component"] == component]
        items = sorted(own, key=_layer)
        parts.append(_band(items, x, y, f"c-{component}"))
        parts += [_effect_point(item, x, y, sites) for item in items]
    entries = [(_SHAPES[c], f"c-{c}", _COMPONENTS[c]) for c in present]
    if sites & {_site(item) for item in effects}:
        entries.append(("ring", "ring", "recommended site"))
    legend = svg.legend(entries, x.start, 16)
    return svg.canvas(WIDTH, 352, "Effect of ablating each component by layer", *parts, legend)


def _effect_point(item: Mapping[str, Any], x: Scale, y: Scale, sites: set[str]) -> Markup:
    component, site = item["component"], _site(item)
    keys = ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low")
    effect, low, high, benign, gap, gap_low = (number(item[key]) for key in keys)
    words = (
        f"{site}: {effect} [{low}, {high}], benign {benign}, selectivity {gap} (at least {gap_low})"
    )
    at = (x(item["layer"]), y(item["effect"]))
    parts = [svg.marker(_SHAPES[component], *at, f"c-{component}", size=3.5)]
    if site in sites:
        parts.append(svg.marker("ring", *at, "ring", size=6.2))
    return tag("g", tag("title", words), *parts, class_="datum")


def _band(
    items: Sequence[Mapping[str, Any]], x: Scale, y: Scale, class_: str, unit: float = 1.0
) -> Markup:
    """The curve of `effect` over layers in its interval; a bar where there is one layer only."""
    low, middle, high = (
        [(x(item["layer"]), y(unit * item[key])) for item in items]
        for key in ("low", "effect", "high")
    )
    if len(items) == 1:
        return svg.line(*low[0], *high[0], f"curve {class_}")
    band = svg.path(low + high[::-1], f"band {class_}", close=True)
    return band + svg.path(middle, f"curve {class_}")


def _layer(item: Mapping[str, Any]) -> int:
    return item["layer"]


def _site(item: Mapping[str, Any]) -> str:
    return f"{item['layer']}.{_KINDS[item['component']]}"


def separability_curves(diagnosis: Mapping[str, Any]) -> Markup:
    """Three panels, one a separability metric, each with its rank correlation to the effect."""
    items = sorted(diagnosis["separability"], key=lambda item: item["layer"])
    if not items:
        return _EMPTY
    panels = []
    gap, width = 58.0, (WIDTH - 2 * 58.0) / 3
    for i, metric in enumerate(("silhouette", "class_separation", "mahalanobis")):
        left = 48 + i * (width + gap - 14)
        values = [item[metric] for item in items]
        low, high = svg.padded(values, [0.0])
        last = max(diagnosis["n_layers"] - 1, 1)
        x, y = Scale(0.0, float(last), left, left + width - 40), Scale(low, high, 196.0, 52.0)
        points = [(x(item["layer"]), y(item[metric])) for item in items]
        ticks = [tick for tick in svg.round_ticks(0, last, 5) if tick == int(tick)]
        panels += [
            svg.y_axis(y, x.start, x.end),
            svg.x_axis(x, 52, 196, "layer", ticks),
            svg.label(left - 36, 16, metric.replace("_", " ").capitalize(), class_="group"),
            svg.label(
                left - 36, 34, _rho(diagnosis["rank_correlation"].get(metric)), class_="tick"
            ),
            svg.path(points, "curve plain"),
        ]
        for item, (px, py) in zip(items, points, strict=True):
            words = f"layer {item['layer']}: {number(item[metric])}"
            panels.append(tag("g", tag("title", words), svg.marker("circle", px, py, "plain", 2.5)))
    return svg.canvas(WIDTH, 244, "Separability by layer", *panels)


def _rho(correlation: Mapping[str, float] | None) -> str:
    if correlation is None:
        return "\u03c1 with the effect: not measured"
    rho, low, high = (number(round(correlation[key], 2)) for key in ("rho", "low", "high"))
    return f"\u03c1 with the effect {rho} [{low}, {high}]"


def _layer_axes(
    n_layers: int, limits: tuple[float, float], bottom: float, title: str
) -> tuple[Scale, Scale, Markup]:
    last = max(n_layers - 1, 1)
    x, y = Scale(0.0, float(last), 64.0, WIDTH - 20.0), Scale(*limits, bottom, 58.0)
    ticks = [tick for tick in svg.round_ticks(0, last, 12) if tick == int(tick)]
    axes = svg.y_axis(y, x.start, x.end, title, about=8) + svg.x_axis(x, 58, bottom, "layer", ticks)
    return x, y, axes


# --- trust and neurons ----------------------------------------------------------------------------


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
        low, middle, high = (number(round(figure[k], 2)) for k in ("low", "rate", "high"))
        words = (
            f"{point['size']} units: {middle} [{low}, {high}]; random: "
            f"{number(round(chance['mean'], 2))} [{number(round(chance['low'], 2))}, "
            f"{number(round(chance['high'], 2))}]"
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
    exact, low, high, estimate = (number(item[key]) for key in ("exact", "low", "high", "estimate"))
    expert = item.get("expert")
    where = f"layer {item['layer']}{'' if expert is None else f', expert {expert}'}"
    words = f"{where}, neuron {item['neuron']}: estimate {estimate}, exact {exact} [{low}, {high}]"
    return tag(
        "g",
        tag("title", words),
        svg.line(at, y(item["low"]), at, y(item["high"]), f"whisker {class_}"),
        svg.marker(shape, at, y(item["exact"]), class_, 4.0 if class_ == "plain" else 3.0),
        class_="datum",
    )
