"""Render a complete report tree to one self-contained HTML page.

No scripts and no external assets: styles, charts and images are inline, and a content security
policy forbids everything else. Templates autoescape; every string from the tree also loses its
control and text-reordering characters on the way out. Nothing here computes a figure.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from care.report import charts, layer_charts
from care.report.schema import OUTCOMES
from care.report.summary import percent, points, target_suites
from care.report.svg import number, visible

_ROLES = {"attack": "attack", "utility": "utility", "over_refusal": "over-refusal"}
_SPACES = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\u23ce", "\n": "\u23ce"})


def render(tree: Mapping[str, Any], digest: str) -> str:
    """The HTML page of a complete tree (see `care.report.files.complete`).

    `digest` is the SHA-256 of the JSON written beside it.
    """
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=tree,
            digest=digest,
            attacks=target_suites(tree["suites"]),
            sections=_sections(tree),
            answers=_answers_by_suite(tree),
            outcome_names=OUTCOMES,
            role_names=_ROLES,
        )
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _sections(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the parts that this report has, in order."""
    return [
        (anchor, title)
        for anchor, title, present in (
            ("verdict", "Verdict", True),
            ("suites", "Before and after", True),
            ("outcomes", "Outcomes", True),
            ("controls", "Controls", tree["controls"]),
            ("diagnosis", "Diagnosis", tree["diagnosis"]),
            ("repair", "Repair", tree["repair"]),
            ("attribution", "Token heatmaps", tree["attribution"]["examples"]),
            ("examples", "Example answers", tree["examples"]),
            ("cost", "Cost", True),
            ("manifest", "Manifest", True),
        )
        if present
    ]


def _answers_by_suite(tree: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Example answers grouped in the order of the suites."""
    groups = {suite["name"]: [] for suite in tree["suites"]}
    for pair in tree["examples"]:
        groups[pair["suite"]].append(pair)
    return [(name, pairs) for name, pairs in groups.items() if pairs]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("care.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters.update(
        percent=percent,
        points=points,
        number=number,
        p_value=p_value,
        duration=duration,
        shaded=shaded_tokens,
    )
    environment.globals.update(charts=charts, layer_charts=layer_charts)
    return environment


def _clean(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def p_value(p: float | None) -> str:
    """Two significant digits, never a bare zero."""
    if p is None:
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """Seconds in the largest fitting units, e.g. `4 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def shaded_tokens(example: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Per token: readable text, raw score, opacity (0 to 0.75) of its shade."""
    shares = charts.unit_scores(example["text_scores"])
    return [
        (token.translate(_SPACES), score, 0.75 * share)
        for token, score, share in zip(
            example["tokens"], example["text_scores"], shares, strict=True
        )
    ]
