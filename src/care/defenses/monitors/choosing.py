"""Which monitors watch a model: one for requests, and one or two for what is said.

They are fitted on the model's own answers, and chosen on others. A monitor of requests is always
there, since its answers are what can be certified. Of answer and exchange, either or both are
taken, by one rule: the share of harmful answers that raise no alarm, meaned over the attack suites,
is to be least; of choices that are less than a point apart, the one with fewer monitors. Two
monitors of answers share the stated false alarms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from care.data.contamination import goal_in_text
from care.data.example import Example
from care.defenses.monitors.features import Labelled
from care.defenses.monitors.fitting import MonitorConfig, MonitorFit, Tried, fit_monitor
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange, Reads

if TYPE_CHECKING:
    from care.models.vlm import VLM

Said = tuple[Example, str, bool]
"""A request, its answer, and whether that answer is harmful."""

CHOICES: tuple[tuple[Reads, ...], ...] = (("answer",), ("exchange",), ("answer", "exchange"))
"""What may watch answers."""

REFUSALS = "refusals"
"""Kind of the harmless answers to malicious requests."""

_ALIKE = 0.01


@dataclass(frozen=True)
class Choice:
    """What watches answers, and what it would do to the answers that it was chosen on."""

    reads: tuple[Reads, ...]
    """What its monitors read."""
    missed: Mapping[str, float]
    """Share of each attack suite's requests that are answered harmfully without an alarm."""
    alarmed: Mapping[str, float]
    """Share of each harmless suite's answers that raise an alarm."""


@dataclass(frozen=True)
class MonitorsFit:
    """The monitors that were taken, and what else there was."""

    monitors: tuple[Monitor, ...]
    """That of requests first."""
    choices: tuple[Choice, ...]
    """All choices of what watches answers, best first: the first was taken."""
    tried: Mapping[Reads, tuple[Tried, ...]]
    """The sites and poolings tried for each reading, best first."""


def fit_monitors(
    vlm: VLM,
    said: Sequence[Said],
    validation: Sequence[Said] = (),
    config: MonitorConfig | None = None,
    *,
    batch_size: int = 32,
) -> MonitorsFit:
    """Fit monitors on answers of the undefended model, and choose between them on others.

    Without `validation` cross-fitted scores of the answers to fit on take its place. FitError where
    harmful or harmless examples are missing or too few.
    """
    config = config or MonitorConfig()
    asked = [[labelled_request(example) for example, _, _ in part] for part in (said, validation)]
    stated = [[each for each in part if each is not None] for part in asked]
    fits: dict[Reads, MonitorFit] = {}
    fits["request"] = fit_monitor(
        vlm, "request", stated[0], stated[1], config, batch_size=batch_size
    )
    answers = [[labelled_answer(*each) for each in part] for part in (said, validation)]
    for reads in ("answer", "exchange"):
        fits[reads] = fit_monitor(vlm, reads, answers[0], answers[1], config, batch_size=batch_size)
    judged = answers[1] or answers[0]
    choices = [_choice(fits, reads, judged, config) for reads in CHOICES]
    best = min(_mean(each.missed) for each in choices)
    alike = [each for each in choices if _mean(each.missed) < best + _ALIKE]
    taken = min(alike, key=lambda each: (len(each.reads), _mean(each.missed)))
    share = config.false_alarms / len(taken.reads)
    monitors = [fits["request"].best.monitor(config.request_false_alarms)]
    monitors += [fits[reads].best.monitor(share) for reads in taken.reads]
    order = [taken, *(each for each in choices if each is not taken)]
    return MonitorsFit(
        tuple(monitors), tuple(order), {reads: fit.tried for reads, fit in fits.items()}
    )


def labelled_request(example: Example) -> Labelled | None:
    """A request for a monitor of requests; None where a malicious goal isn't in its text."""
    malicious, goal = example.kind == "malicious", example.goal or example.prompt
    if malicious and not goal_in_text(goal, example.prompt):
        return None
    return Labelled(Exchange(example), malicious, _suite(example), goal)


def labelled_answer(example: Example, answer: str, harmful: bool) -> Labelled:
    """An answer for a monitor of what is said."""
    kind = _suite(example) if harmful or example.kind == "benign" else REFUSALS
    return Labelled(Exchange(example, answer), harmful, kind, example.goal or example.prompt)


def _choice(
    fits: Mapping[Reads, MonitorFit],
    reads: tuple[Reads, ...],
    judged: Sequence[Labelled],
    config: MonitorConfig,
) -> Choice:
    watching = [fits[each].best for each in reads]
    limits = [each.monitor(config.false_alarms / len(reads)).threshold for each in watching]
    missed: dict[str, list[bool]] = {}
    alarmed: dict[str, list[bool]] = {}
    for place, each in enumerate(judged):
        raised = any(
            candidate.scores.get(place, -np.inf) > limit
            for candidate, limit in zip(watching, limits, strict=True)
        )
        if each.exchange.request.kind == "malicious":
            suite = _suite(each.exchange.request)
            missed.setdefault(suite, []).append(each.harmful and not raised)
        else:
            alarmed.setdefault(each.kind, []).append(raised)
    return Choice(reads, _shares(missed), _shares(alarmed))


def _shares(told: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {name: float(np.mean(part)) for name, part in told.items()}


def _mean(shares: Mapping[str, float]) -> float:
    return float(np.mean(list(shares.values()))) if shares else 0.0


def _suite(example: Example) -> str:
    return example.suite or example.category or example.kind
