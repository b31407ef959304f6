"""Charts over the layers of a model: effects of each layer, and separability, as inline SVG.

Pure functions from the `diagnosis` part of the tree. Series differ in marker, not only in colour;
an empty part gives empty markup. Numbers are also in the tables beside the charts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from care.report import svg
from care.report.svg import WIDTH, Scale, tag
from care.report.targets import points

_COMPONENTS = {"ffn": "FFN", "mhsa": "MHSA", "layer": "whole layer"}
_KINDS = {"ffn": "ffn_out", "mhsa": "mhsa_out", "layer": "layer_out"}
_SHAPES = {"ffn": "circle", "mhsa": "square", "layer": "diamond"}
_EMPTY = Markup("")


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
    effect, low, high, benign, gap, gap_low = (svg.number(item[key]) for key in keys)
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
            words = f"layer {item['layer']}: {svg.number(item[metric])}"
            panels.append(tag("g", tag("title", words), svg.marker("circle", px, py, "plain", 2.5)))
    return svg.canvas(WIDTH, 244, "Separability by layer", *panels)


def _rho(correlation: Mapping[str, float] | None) -> str:
    if correlation is None:
        return "\u03c1 with the effect: not measured"
    rho, low, high = (svg.number(round(correlation[key], 2)) for key in ("rho", "low", "high"))
    return f"\u03c1 with the effect {rho} [{low}, {high}]"


def _layer_axes(
    n_layers: int, limits: tuple[float, float], bottom: float, title: str
) -> tuple[Scale, Scale, Markup]:
    last = max(n_layers - 1, 1)
    x, y = Scale(0.0, float(last), 64.0, WIDTH - 20.0), Scale(*limits, bottom, 58.0)
    ticks = [tick for tick in svg.round_ticks(0, last, 12) if tick == int(tick)]
    axes = svg.y_axis(y, x.start, x.end, title, about=8) + svg.x_axis(x, 58, bottom, "layer", ticks)
    return x, y, axes
