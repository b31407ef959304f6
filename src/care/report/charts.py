"""The report's charts, each a pure function from a part of the tree to inline SVG.

Colours are told apart by people with colour-vision deficiencies, and no chart relies on colour
alone: before and after differ in shape, components in marker, degenerate answers are hatched. An
empty part gives empty markup. Numbers are also in the tables beside the charts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from care.data.example import SuiteRole
from care.report import svg
from care.report.numbers import number, percent
from care.report.rate_charts import BEFORE_AFTER, RateRow, label_width, rates_chart
from care.report.schema import OUTCOMES, WHEN
from care.report.svg import WIDTH, Scale, tag
from care.statistics.intervals import Interval

ROLE_TITLES: dict[SuiteRole, str] = {
    "attack": "Attack success: lower is better",
    "utility": "Utility: higher is better",
    "over_refusal": "Harmless requests answered: higher is better",
}
"""What the suites of each role measure, in the order of charts."""
_SIDE = 20
_EMPTY = Markup("")


def before_after(suites: Sequence[Mapping[str, Any]]) -> Markup:
    """Rates with Wilson intervals before (circle) and after (diamond), one row a suite."""
    rows = [
        RateRow(suite["name"], tuple(Interval(**suite[side], n=suite["n"]) for side in WHEN), title)
        for role, title in ROLE_TITLES.items()
        for suite in suites
        if suite["role"] == role
    ]
    return rates_chart(rows, BEFORE_AFTER, "Rates before and after")


def outcome_bars(outcomes: Mapping[str, Mapping[str, Mapping[Any, int]]]) -> Markup:
    """Share of harmful, refused, degenerate and safe answers: of each suite a bar for each side.

    `outcomes` are the counts by suite and side, the sides being before and after, or defenses.
    """
    if not outcomes:
        return _EMPTY
    sides = [side for counts in outcomes.values() for side in counts]
    wide = 7 + 6.4 * min(max(map(len, sides)), _SIDE)
    left = label_width(list(outcomes)) + wide
    scale = Scale(0.0, 1.0, left, WIDTH - 20)
    rows: list[Markup] = []
    y = 36.0
    for name, found in outcomes.items():
        middle = y + 19 * len(found) / 2 + 3
        rows.append(svg.label(left - wide - 12, middle, svg.shorten(name, 34), "end"))
        for side, counts in found.items():
            rows.append(svg.label(left - 8, y + 13, svg.shorten(side, _SIDE), "end", "tick"))
            rows.append(_stack(counts, scale, y, 17, f"{name}, {side}"))
            y += 19
        y += 10
    legend = svg.legend([("square", f"o-{name}", name) for name in OUTCOMES], left, 14)
    return svg.canvas(WIDTH, y, "Outcomes of the answers", _hatch(), legend, *rows)


def outcome_strip(counts: Mapping[str, int], title: str) -> Markup:
    """One stacked bar for a table cell."""
    return svg.canvas(
        240, 18, title, _hatch(), _stack(counts, Scale(0.0, 1.0, 0.0, 240.0), 0.0, 18.0, title)
    )


def _stack(counts: Mapping[str, int], scale: Scale, y: float, height: float, title: str) -> Markup:
    total = sum(counts[name] for name in OUTCOMES)
    parts, done = [], 0
    for name in OUTCOMES:
        if not counts[name]:
            continue  # all of them, where every example failed
        x1, x2 = scale(done / total), scale((done + counts[name]) / total)
        done += counts[name]
        words = f"{title}: {counts[name]} of {total} {name} ({percent(counts[name] / total)})"
        box = {"x": x1, "y": y, "width": x2 - x1, "height": height}
        parts.append(tag("rect", tag("title", words), class_=f"o-{name}", **box))
        if name == "degenerate":
            parts.append(tag("rect", fill="url(#hatch)", pointer_events="none", **box))
        if x2 - x1 > 30:
            share = f"{100 * counts[name] / total:.0f}%"
            parts.append(svg.label((x1 + x2) / 2, y + height / 2 + 4, share, "middle", "inside"))
    return svg.join(parts)


def spectrum(channel: Mapping[str, Any]) -> Markup:
    """Eigenvalues of one channel as stems; kept ones filled, with the permutation null's line."""
    values = channel["eigenvalues"]
    if not values:
        return _EMPTY
    null = channel["null_quantile"]
    include = [null] if null is not None else []
    positive = min([*values, *include]) > 0
    log = positive and max([*values, *include]) > 50 * min([*values, *include])
    if log:
        low, high = min([*values, *include]) * 0.8, max([*values, *include]) * 1.25
    else:
        low, high = svg.padded(values, [0.0, *include])
        low = 0.0 if positive else low
    width = 410
    x = Scale(0.5, len(values) + 0.5, 56.0, width - 14.0)
    y = Scale(low, high, 190.0, 34.0, log)
    parts = [svg.y_axis(y, x.start, x.end, "eigenvalue, log scale" if log else "eigenvalue")]
    ticks = [t for t in svg.round_ticks(1, len(values), 6) if t == int(t)]
    parts.append(svg.x_axis(x, 34, 190, "index", ticks))
    floor = y(low)
    for index, value in enumerate(values, start=1):
        kept = index <= channel["rank"]
        words = f"eigenvalue {index}: {number(value)} ({'kept' if kept else 'left out'})"
        class_ = "kept" if kept else "left"
        stem = svg.line(x(index), floor, x(index), y(value), f"stem {class_}")
        dot = tag("circle", cx=x(index), cy=y(value), r=4, class_=class_)
        parts.append(tag("g", tag("title", words), stem, dot, class_="datum"))
    if null is not None:
        parts.append(svg.line(x.start, y(null), x.end, y(null), "null"))
        words = f"permutation null {number(null)}"
        parts.append(svg.label(x.end, 22, words, "end", "tick"))
        parts.append(svg.line(x.end - 164, 18, x.end - 136, 18, "null"))
    title = f"Eigenvalues at {channel['site']}, {channel['modality']}"
    return svg.canvas(width, 236, title, *parts)


def selection_scatter(candidates: Sequence[Mapping[str, Any]]) -> Markup:
    """Attack success against utility of every candidate on validation; the chosen one marked."""
    if len(candidates) < 2:
        return _EMPTY
    low, high = svg.padded([100 * candidate["utility"] for candidate in candidates], share=0.08)
    x = Scale(max(low, 0.0), min(max(high, low + 1.0), 100.5), 64.0, WIDTH - 20.0)
    y = Scale(0.0, min(100.0, svg.padded([100 * c["asr"] for c in candidates])[1] + 4), 260.0, 40.0)
    parts = [
        svg.y_axis(y, x.start, x.end, "attack success, %"),
        svg.x_axis(x, 40, 260, "utility on validation, %", x.ticks(8)),
    ]
    for candidate in sorted(candidates, key=lambda item: item["chosen"]):
        px, py = x(100 * candidate["utility"]), y(100 * candidate["asr"])
        chosen = candidate["chosen"]
        asr, utility = percent(candidate["asr"]), percent(candidate["utility"])
        words = f"{candidate['name']}: attack success {asr}, utility {utility}"
        marker = svg.marker(
            "diamond" if chosen else "circle", px, py, "after" if chosen else "before"
        )
        note = _EMPTY
        if chosen:
            right = px > (x.start + x.end) / 2
            note = svg.label(
                px + (-12 if right else 12), py - 10, "chosen", "end" if right else "start"
            )
        parts.append(tag("g", tag("title", words), marker, note, class_="datum"))
    return svg.canvas(WIDTH, 304, "Candidates on validation", *parts)


def image_heatmap(example: Mapping[str, Any]) -> Markup:
    """Visual scores drawn over the image, one translucent cell a token; high scores are opaque."""
    if not example["image"]:
        return _EMPTY
    rows, cols = example["grid"] or (0, 0)
    shown = tag("image", href=example["image"], width=280, height=280, preserveAspectRatio="none")
    cells = []
    width, height = (280 / cols, 280 / rows) if rows and cols else (0.0, 0.0)
    for index, share in enumerate(unit_scores(example["visual_scores"])):
        row, col = divmod(index, cols)
        if share > 0.02:
            cells.append(
                tag(
                    "rect",
                    x=col * width,
                    y=row * height,
                    width=width,
                    height=height,
                    fill_opacity=0.8 * share,
                )
            )
    overlay = tag("g", *cells, class_="heat")
    return svg.canvas(280, 280, f"Visual scores of {example['id']}", shown, overlay)


def unit_scores(scores: Sequence[float]) -> list[float]:
    """Scores scaled to [0, 1] within one example; all zero if they don't differ."""
    if not scores:
        return []
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 0.0 for score in scores]


# --- shared parts -------------------------------------------------------------------------------


def _hatch() -> Markup:
    stripe = svg.line(0, 0, 0, 6, "stripe")
    pattern = tag(
        "pattern",
        stripe,
        id="hatch",
        width=6,
        height=6,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )
    return tag("defs", pattern)
