"""The heatmap of a diagnosis: effect of removing each component, layer by layer, as inline SVG.

One panel for each window size, side by side; in a panel one column for each way of removing a
component, and one row a layer. Colour and its sign carry the effect, and so does the number in the
cell where there is room; a bold number or a dot marks an interval without 0, a frame a recommended
site. An empty part gives empty markup.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from care.report import svg
from care.report.numbers import number
from care.report.svg import WIDTH, tag

_NAMES = {"ffn": "FFN", "mhsa": "MHSA", "layer": "layer", "neurons": "neurons"}
_KINDS = {"ffn": "ffn_out", "mhsa": "mhsa_out", "layer": "layer_out", "neurons": "ffn_neurons"}
_LEFT = 44.0
_GAP = 40.0
_TOP = 84.0
_EMPTY = Markup("")

Cell = Mapping[str, Any]


class _Grid(NamedTuple):
    """Where the cells of all panels are."""

    windows: list[int]
    columns: list[tuple[str, str]]
    """(intervention, component) in the order of appearance."""
    n_layers: int
    width: float
    """Of a cell."""
    height: float
    """Of a cell."""
    greatest: float
    """|effect| of the strongest colour."""

    @property
    def numbered(self) -> bool:
        """Whether a number fits into a cell."""
        return self.width >= 38.0 and self.height >= 15.0

    def x(self, window: int, column: int) -> float:
        """Left edge of a cell."""
        panel = self.windows.index(window)
        return _LEFT + panel * (self.width * len(self.columns) + _GAP) + column * self.width

    def y(self, layer: int) -> float:
        """Top edge of a cell."""
        return _TOP + layer * self.height


def heatmap(diagnosis: Mapping[str, Any]) -> Markup:
    """Layer × component, one panel a window size."""
    cells = diagnosis["heatmap"]
    if not cells:
        return _EMPTY
    grid = _grid(cells, diagnosis["n_layers"])
    sites = {item["site"] for item in diagnosis["recommended"]}
    parts = [_heading(grid, window) for window in grid.windows]
    parts += [_layer_labels(grid), *(_cell(item, grid, sites) for item in cells)]
    bottom = grid.y(grid.n_layers)
    parts.append(_ramp(grid, bottom + 14))
    words = "Effect of removing each component, by layer and window"
    return svg.canvas(WIDTH, bottom + 52, words, *parts)


def window_words(layer: int, window: int, n_layers: int) -> str:
    """The layers of a window by its middle layer: `layer 4`, or `layers 3 to 5`."""
    if window == 1:
        return f"layer {layer}"
    first = layer - (window - 1) // 2
    return f"layers {max(first, 0)} to {min(first + window, n_layers) - 1}"


def _grid(cells: Sequence[Cell], n_layers: int) -> _Grid:
    windows = sorted({item["window"] for item in cells})
    columns = list(dict.fromkeys((item["intervention"], item["component"]) for item in cells))
    room = (WIDTH - _LEFT - _GAP * (len(windows) - 1) - 4) / (len(windows) * len(columns))
    height = 17.0 if n_layers <= 40 else 11.0 if n_layers <= 64 else 8.0
    greatest = max(abs(item["effect"]) for item in cells) or 1.0
    return _Grid(windows, columns, n_layers, min(room, 130.0), height, greatest)


def _heading(grid: _Grid, window: int) -> Markup:
    title = "Single layers" if window == 1 else f"Windows of {window} layers"
    parts = [svg.label(grid.x(window, 0), 16, title, class_="group")]
    for at, (intervention, component) in enumerate(grid.columns):
        middle = grid.x(window, at) + grid.width / 2
        name = _NAMES[component] if grid.width >= 30.0 else _NAMES[component][0].upper()
        parts.append(svg.label(middle, _TOP - 8, name, "middle", "tick"))
        if at == 0 or grid.columns[at - 1][0] != intervention:
            same = [name for name, _ in grid.columns[at:]]
            span = next((i for i, name in enumerate(same) if name != intervention), len(same))
            left, right = grid.x(window, at), grid.x(window, at + span)
            words = svg.shorten(intervention, max(int((right - left) / 6.5), 2))
            shown = tag("tspan", words) + tag("title", intervention)
            parts.append(tag("text", shown, x=left + 2, y=_TOP - 30, class_="tick"))
            parts.append(svg.line(left + 1, _TOP - 24, right - 3, _TOP - 24, "base"))
    return svg.join(parts)


def _layer_labels(grid: _Grid) -> Markup:
    every = 1 if grid.height >= 15.0 else 5
    return svg.join(
        [
            svg.label(_LEFT - 8, grid.y(layer) + grid.height / 2 + 4, layer, "end", "tick")
            for layer in range(0, grid.n_layers, every)
        ]
    )


def _cell(item: Cell, grid: _Grid, sites: set[str]) -> Markup:
    column = grid.columns.index((item["intervention"], item["component"]))
    x, y = grid.x(item["window"], column), grid.y(item["layer"])
    share = min(abs(item["effect"]) / grid.greatest, 1.0)
    side = "less" if item["effect"] < 0 else "more"
    box = {"x": x, "y": y, "width": grid.width - 1, "height": grid.height - 1}
    parts = [
        tag("title", _words(item, grid.n_layers)),
        tag("rect", class_="cell", **box),
        tag("rect", class_=f"cell {side}", fill_opacity=0.9 * share, **box),
    ]
    clear = item["low"] > 0.0 or item["high"] < 0.0
    middle = (x + (grid.width - 1) / 2, y + (grid.height - 1) / 2)
    if grid.numbered:
        classes = ["value", *["clear"] * clear, *["dark"] * (share > 0.8)]
        words = number(round(item["effect"], 2))
        parts.append(svg.label(middle[0], middle[1] + 4, words, "middle", " ".join(classes)))
    elif clear:
        parts.append(tag("circle", cx=middle[0], cy=middle[1], r=1.6, class_="dot"))
    if item["window"] == 1 and f"{item['layer']}.{_KINDS[item['component']]}" in sites:
        parts.append(tag("rect", class_="frame", **box))
    return tag("g", *parts, class_="datum")


def _words(item: Cell, n_layers: int) -> str:
    keys = ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low")
    effect, low, high, benign, gap, least = (number(item[key]) for key in keys)
    where = window_words(item["layer"], item["window"], n_layers)
    return (
        f"{_NAMES[item['component']]} of {where}, {item['intervention']}: {effect} [{low}, {high}],"
        f" benign {benign}, selectivity {gap} (at least {least}), relative norm removed "
        f"{number(item['relative_norm'])}"
    )


def _ramp(grid: _Grid, y: float) -> Markup:
    """The colours from the most negative to the most positive effect."""
    steps, width = 15, 20.0
    parts = []
    for step in range(steps):
        share = 2 * step / (steps - 1) - 1
        x = _LEFT + 60 + step * width
        box = {"x": x, "y": y, "width": width, "height": 12}
        side = "less" if share < 0 else "more"
        parts.append(tag("rect", class_=f"cell {side}", fill_opacity=0.9 * abs(share), **box))
    least, most = number(-round(grid.greatest, 2)), number(round(grid.greatest, 2))
    end = _LEFT + 60 + steps * width
    notes = "bold: interval without 0" if grid.numbered else "dot: interval without 0"
    parts.append(svg.label(_LEFT + 52, y + 10, least, "end", "tick"))
    parts.append(svg.label(end + 8, y + 10, most, class_="tick"))
    parts.append(svg.label(end + 60, y + 10, f"{notes}; frame: recommended", class_="tick"))
    return svg.join(parts)
