"""The report's tree, from a finished job's table, repair and diagnosis.

Keys and their meaning: `docs/report.md`. Nothing is measured here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from care.data.small_world.suites import BASELINE
from care.evaluation.config import UNDEFENDED
from care.report.repair_schema import ChannelPart, GatePart, MonitorPart
from care.report.schema import (
    SCHEMA,
    WHAT,
    AnswerPair,
    AttributedExample,
    Attribution,
    SuiteResult,
    When,
)
from care.typed import from_tree, to_tree

if TYPE_CHECKING:  # a report is written without torch, which what it is made of needs
    from PIL import Image

    from care.data.example import Example
    from care.defenses.monitors.monitor import Monitor
    from care.defenses.repair.channel import Channel
    from care.defenses.repair.gate import Gate
    from care.defenses.repair.repair import Repair
    from care.diagnosis.results import Diagnosis
    from care.diagnosis.token_attribution import TokenScores
    from care.evaluation.results import Results
    from care.runs.rows import Row

SIDES: dict[When, str] = {"before": UNDEFENDED, "after": "care"}
"""The defenses of a job's table that the report compares."""

_LATER = frozenset({"certified", "parts"})
"""Parts that only repairs with monitors have."""

EIGENVALUES = 32
"""How many of a channel are shown."""


def report_tree(
    table: Results,
    halves: Sequence[str],
    controls: Sequence[str],
    repair: Repair,
    preset: str,
    selection: Mapping[str, Any],
    diagnosis: Diagnosis,
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything of the report but examples, attribution and cost."""
    suites = [
        SuiteResult(**vars(found), target=found.role == "attack" and found.name != BASELINE)
        for found in table.compare(*SIDES.values())
    ]
    watched = [_monitor(monitor) for monitor in repair.monitors]
    parts: dict[str, Any] = {
        "schema": SCHEMA,
        "title": _title(manifest),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "suites": suites,
        "outcomes": {
            suite.name: {when: table.outcomes(suite.name, side) for when, side in SIDES.items()}
            for suite in suites
        },
        "certified": {
            suite.name: found
            for suite in suites
            if (found := table.certified(suite.name, SIDES["after"])) is not None
        },
        "parts": {name: _control(table, name, suites) for name in halves},
        "controls": {name: _control(table, name, suites) for name in controls},
        "diagnosis": diagnosis,
        "repair": {
            "preset": preset,
            "channels": [_channel(channel) for channel in repair.channels],
            "selection": selection,
        },
    }
    if watched:
        parts["repair"]["monitors"] = watched
    return to_tree({key: part for key, part in parts.items() if part or key not in _LATER}, WHAT)


def _title(manifest: Mapping[str, Any]) -> str:
    quick = f" (quick: {manifest['quick']})" if "quick" in manifest else ""
    return f"care: {manifest.get('model', 'a model')} repaired{quick}"


def _control(table: Results, name: str, suites: Sequence[SuiteResult]) -> dict[str, Any]:
    asked = [suite for suite in suites if table.has(suite.name, name)]
    rates = {suite.name: table.rate(suite.name, name).rate for suite in asked}

    def mean(wanted: Callable[[SuiteResult], bool]) -> float | None:
        found = [rates[suite.name] for suite in asked if wanted(suite)]
        return sum(found) / len(found) if found else None

    return {
        "mean_asr": mean(lambda suite: suite.target),
        "utility": mean(lambda suite: suite.role == "utility"),
        "answered": mean(lambda suite: suite.role == "over_refusal"),
        "suites": rates,
    }


def _channel(channel: Channel) -> ChannelPart:
    subspace = channel.subspace
    return ChannelPart(
        site=str(channel.site),
        modality=channel.modality,
        scopes=tuple(channel.scopes),
        rank=subspace.rank,
        strength=channel.strength,
        eigenvalues=tuple(float(value) for value in subspace.eigenvalues[:EIGENVALUES]),
        null_quantile=subspace.null_quantile,
        shrinkage=float(subspace.shrinkage),
        condition=float(subspace.condition),
        n_malicious=subspace.n_malicious,
        n_benign=subspace.n_benign,
        gate=None if channel.gate is None else _gate(channel.gate),
    )


def _monitor(monitor: Monitor) -> MonitorPart:
    return MonitorPart(
        reads=monitor.reads,
        site=None if monitor.site is None else str(monitor.site),
        pooling=monitor.pooling,
        threshold=monitor.threshold,
    )


def _gate(gate: Gate) -> GatePart:
    facts = {
        "families": gate.families,
        "low": gate.low.tolist(),
        "high": gate.high.tolist(),
        "open": gate.opened,
        "open_benign": gate.opened_benign,
        "quantile": gate.quantile,
    }
    return from_tree(GatePart, facts, "gate", what=WHAT)


def answer_pairs(
    table: Results, examples: Mapping[tuple[str, str], Example], each: int = 2
) -> list[dict[str, Any]]:
    """Answers before and after, side by side: in every suite those that changed come first.

    `examples` by suite and id.
    """
    pairs = []
    for suite in table.suites:
        both = table.pairs(suite, SIDES["before"], SIDES["after"])
        both = [(b, a) for b, a in both if (suite, b["example"]) in examples]
        both.sort(key=lambda pair: pair[0]["outcome"] == pair[1]["outcome"])
        pairs += [_pair(suite, examples[suite, b["example"]], b, a) for b, a in both[:each]]
    return to_tree(pairs, WHAT)


def _pair(suite: str, example: Example, before: Row, after: Row) -> AnswerPair:
    images = example.load_images()
    return AnswerPair(
        suite=suite,
        id=example.id,
        goal=example.goal,
        prompt=example.prompt,
        image=data_uri(images[0]) if images else None,
        before=before["response"],
        after=after["response"],
        outcome_before=before["outcome"],
        outcome_after=after["outcome"],
    )


def data_uri(image: Image.Image) -> str:
    """A small PNG of the picture as a data URI."""
    small = image.copy()
    small.thumbnail((168, 168))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def attribution(scores: Sequence[TokenScores]) -> dict[str, Any]:
    """The `attribution` part: token scores with the pictures that they lie over."""
    examples = (
        AttributedExample(
            id=item.example.id,
            image=data_uri(item.example.load_images()[0]) if item.grid else None,
            grid=item.grid,
            visual_scores=item.visual_scores,
            tokens=item.tokens,
            text_scores=item.text_scores,
        )
        for item in scores
    )
    return to_tree(Attribution(tuple(examples)), WHAT)
