"""Render a complete report tree to one self-contained HTML page.

No scripts and no external assets: styles, charts and images are inline, and a content security
policy forbids everything else. Templates autoescape; every string from the tree also loses its
control and text-reordering characters on the way out. Nothing here computes a figure.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from care.report import charts, diagnosis_charts, heatmap_chart, threat_charts
from care.report.numbers import number, p_value, percent, points
from care.report.rules import capital
from care.report.schema import OUTCOMES
from care.report.svg import visible
from care.report.targets import target_suites
from care.report.threat_charts import job_threats
from care.runs.progress import duration

_ROLES = {"attack": "attack", "utility": "utility", "over_refusal": "over-refusal"}
_METHODS = {
    "atp": "attribution patching",
    "ig": "integrated gradients",
    "graddrop": "attribution patching with GradDrop",
}
_SPACES = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\u23ce", "\n": "\u23ce"})


def render(tree: Mapping[str, Any], digest: str) -> str:
    """The HTML page of a complete tree (see `care.report.files.complete`).

    `digest` is the SHA-256 of the JSON written beside it.
    """
    return filled(
        "report.html.j2",
        report=tree,
        digest=digest,
        json_name="report.json",
        attacks=target_suites(tree["suites"]),
        sections=_sections(tree),
        answers=_answers_by_suite(tree),
        threats=job_threats(tree),
        watched=bool((tree["repair"] or {}).get("monitors")),
    )


def render_diagnosis(tree: Mapping[str, Any], digest: str, json_name: str) -> str:
    """The HTML page of a diagnosis alone: `schema`, `title` and a complete `diagnosis`."""
    return filled(
        "diagnosis_page.html.j2",
        report=tree,
        digest=digest,
        json_name=json_name,
        sections=[("diagnosis", "Diagnosis")],
    )


def filled(template: str, **values: Any) -> str:
    """A template filled in; what UTF-8 can't hold is replaced.

    Every page is given `report` with `schema` and `title`, `sections`, and `digest` and `json_name`
    of the JSON that it shows.
    """
    page = _environment().get_template(template).render(outcome_names=OUTCOMES, **values)
    return page.encode("utf-8", "replace").decode("utf-8")


def _sections(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the parts that this report has, in order."""
    return [
        (anchor, title)
        for anchor, title, present in (
            ("verdict", "Verdict", True),
            ("suites", "Before and after", True),
            ("threats", "Transfer, adaptive, certified", _has_attacks(tree)),
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


def _has_attacks(tree: Mapping[str, Any]) -> bool:
    return any(suite["role"] == "attack" for suite in tree["suites"])


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
        duration=partial(duration, decimals=1),
        shaded=shaded_tokens,
        readable=readable,
        capital=capital,
        by_metric=by_metric,
    )
    environment.globals.update(
        charts=charts,
        diagnosis_charts=diagnosis_charts,
        threat_charts=threat_charts,
        methods=_METHODS,
        role_names=_ROLES,
        heatmap_chart=heatmap_chart,
    )
    return environment


def _clean(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def readable(token: str) -> str:
    """A token with its marks of spaces and line ends made readable."""
    return token.translate(_SPACES)


def by_metric(
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[tuple[int, Mapping[str, Any]]]]]:
    """Causal effects by metric and kind of pairs, with a title for each.

    Each has its index in `rows`; the greatest indirect effect comes first.
    """
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for index, row in enumerate(rows):
        title = f"{row['metric']}, pairs: {row['pairs']}" if row["pairs"] else row["metric"]
        groups.setdefault(title, []).append((index, row))
    return [
        (title, sorted(items, key=lambda item: -abs(item[1]["indirect"]["rate"])))
        for title, items in groups.items()
    ]


def shaded_tokens(example: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Per token: readable text, raw score, opacity (0 to 0.75) of its shade."""
    shares = charts.unit_scores(example["text_scores"])
    return [
        (readable(token), score, 0.75 * share)
        for token, score, share in zip(
            example["tokens"], example["text_scores"], shares, strict=True
        )
    ]
