"""Small SVG helpers: an escaping `tag`, a linear or logarithmic scale, ticks and axes.

Charts are static inline SVG, so that a report opens at once, prints, and needs no JavaScript.
Every attribute and text goes through `markupsafe`, so nothing a model wrote can become markup.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from care.report.numbers import number

WIDTH = 860
"""Width of a chart that fills the page's column, in pixels."""

# Control, bidirectional-override and surrogate characters could hide or reorder the text around.
_HIDDEN = dict.fromkeys(
    (
        *range(9),
        *(11, 12),
        *range(14, 32),
        *range(127, 160),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ),
    "\N{REPLACEMENT CHARACTER}",
)


def visible(text: str) -> str:
    """Replace characters that can't be shown or that would reorder their surroundings."""
    return text.translate(_HIDDEN)


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element; `class_` becomes `class`, `stroke_width` `stroke-width`; None is left out."""
    opening = Markup(name)
    for key, value in attributes.items():
        if value is not None:
            key = key.rstrip("_").replace("_", "-")
            opening += Markup(' {}="{}"').format(key, _text(value))
    content = Markup("").join(
        child if isinstance(child, Markup) else escape(_text(child)) for child in children
    )
    return Markup("<{0}>{1}</{2}>").format(opening, content, Markup(name))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return visible(str(value))


def join(parts: Sequence[Markup]) -> Markup:
    """Concatenate markup."""
    return Markup("").join(parts)


def canvas(width: float, height: float, label: str, *children: object) -> Markup:
    """An SVG figure that scales with its column and tells a screen reader what it shows."""
    return tag(
        "svg",
        tag("title", label),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def label(
    x: float, y: float, text: object, anchor: str = "start", class_: str | None = None
) -> Markup:
    """Text at a point."""
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, **attributes: object) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **attributes)


def path(points: Sequence[tuple[float, float]], class_: str, close: bool = False, **attributes):
    """A polyline, or a filled polygon if `close`."""
    data = "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points) + ("Z" if close else "")
    return tag("path", d=data, class_=class_, **attributes)


def shorten(text: str, limit: int) -> str:
    """Cut a label to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Scale:
    """Maps data in [low, high] to pixels in [start, end]."""

    low: float
    """Data value at `start`."""
    high: float
    """Data value at `end`."""
    start: float
    """First pixel."""
    end: float
    """Last pixel (smaller than `start` on a vertical axis)."""
    log: bool = False
    """Logarithmic; needs positive data."""

    def __call__(self, value: float) -> float:
        """Pixel of one value."""
        low, high = self._position(self.low), self._position(self.high)
        share = (self._position(value) - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)

    def _position(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the range: powers of ten, or steps of 1, 2 or 5 times one."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            powers = [10.0**exponent for exponent in range(first, last + 1)]
            return powers if len(powers) > 1 else [self.low, self.high]
        return round_ticks(self.low, self.high, about)


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], roughly `about` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], include: Sequence[float] = (), share: float = 0.05):
    """Range of the values (and of `include`) widened by a share, never of zero width."""
    everything = [*values, *include] or [0.0, 1.0]
    low, high = min(everything), max(everything)
    margin = share * (high - low) or max(abs(high), 1.0) * share
    return low - margin, high + margin


def y_axis(scale: Scale, left: float, right: float, title: str = "", about: int = 5) -> Markup:
    """Horizontal grid lines at roughly `about` values, and the title above."""
    parts = [
        line(left, scale(tick), right, scale(tick), "grid")
        + label(left - 8, scale(tick) + 4, number(tick), "end", "tick")
        for tick in scale.ticks(about)
    ]
    if title:
        parts.append(label(left - 44, scale.end - 12, title, "start", "axis"))
    return join(parts)


def x_axis(scale: Scale, top: float, bottom: float, title: str, ticks: Sequence[float]) -> Markup:
    """Base line with tick values and the title below."""
    parts = [line(scale.start, bottom, scale.end, bottom, "base")]
    for tick in ticks:
        parts.append(line(scale(tick), bottom, scale(tick), bottom + 4, "base"))
        parts.append(label(scale(tick), bottom + 18, number(tick), "middle", "tick"))
    parts.append(label((scale.start + scale.end) / 2, bottom + 38, title, "middle", "axis"))
    return join(parts)


def marker(shape: str, x: float, y: float, class_: str, size: float = 5.0) -> Markup:
    """A circle, square, diamond, triangle or drop (a triangle on its tip) of about the same area at
    a point, or a hollow ring around it."""
    if shape == "ring":
        return tag("circle", cx=x, cy=y, r=1.3 * size, class_=class_)
    class_ = f"mark {class_}"
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=size, class_=class_)
    if shape == "square":
        side = 1.8 * size
        return tag("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=class_)
    reach = 1.3 * size
    if shape in ("triangle", "drop"):
        up = reach if shape == "triangle" else -reach
        return path(
            [(x, y - up), (x + reach, y + 0.75 * up), (x - reach, y + 0.75 * up)], class_, True
        )
    corners = [(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)]
    return path(corners, class_, close=True)


def legend(
    entries: Sequence[tuple[str, str, str]], x: float, y: float, step: float = 110.0
) -> Markup:
    """Markers (shape, class, words) in a row, `step` pixels each; the shape `ring` is hollow."""
    parts = []
    for i, (shape, class_, words) in enumerate(entries):
        at = x + step * i + 6
        parts.append(marker(shape, at, y - 4, class_, size=5.5))
        parts.append(label(at + 12, y, words, class_="tick"))
    return join(parts)
