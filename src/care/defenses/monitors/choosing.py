"""Which monitors watch a model: one or two for requests, and one or two for what is said.

They are fitted on the model's own answers, and chosen on others. A monitor of requests is always
there, since its answers are what can be certified. Beside a detector stand the refusal log-odds of
the request's text, what the model itself would refuse without the picture: the defense `text-first`
for one pass in place of an answer, with as many false alarms of their own. Of answer and exchange,
either or both are taken, by one rule: the share of harmful answers that raise no alarm, meaned over
the attack suites, is to be least; of choices that are less than a point apart, the one with more
monitors. Two monitors of answers share the stated false alarms, and what passes one may not pass
the other: a suffix can be searched that moves the score of an exchange, which holds it, but it
moves that of the answer by what is said alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from care.data.contamination import goal_in_text
from care.data.example import Example
from care.defenses.monitors.features import Labelled
from care.defenses.monitors.fitting import MonitorConfig, MonitorFit, fit_monitor
from care.defenses.monitors.memory import MonitorMemory, remembered
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange
from care.defenses.monitors.results import (
    Choice,
    MonitorsTold,
    MonitorTrial,
    Reads,
    mean_share,
    shares,
)

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
class MonitorsFit:
    """The monitors that were taken, and what else there was."""

    monitors: tuple[Monitor, ...]
    """That of requests first."""
    choices: tuple[Choice, ...]
    """All choices of what watches answers, best first: the first was taken."""
    tried: Mapping[Reads, tuple[MonitorTrial, ...]]
    """The sites and poolings tried for each reading, best first."""
    others: Mapping[float, tuple[Monitor, ...]] = field(default_factory=dict)
    """The same monitors with the thresholds of other shares of false alarms."""
    memory: tuple[MonitorMemory, ...] = ()
    """What each monitor rests on, if that was to be kept."""

    def told(self) -> MonitorsTold:
        """What is told of it."""
        return MonitorsTold(self.choices, self.tried)


def fit_monitors(
    vlm: VLM,
    said: Sequence[Said],
    validation: Sequence[Said] = (),
    config: MonitorConfig | None = None,
    *,
    batch_size: int = 32,
    shares: Sequence[float] = (),
    remember: bool = True,
) -> MonitorsFit:
    """Fit monitors on answers of the undefended model, and choose between them on others.

    Without `validation` cross-fitted scores of the answers to fit on take its place. Thresholds are
    taken for other `shares` of false alarms too. What the monitors rest on is kept unless
    `remember` is False; that reads the harmless ones of `validation` once more. FitError where
    harmful or harmless examples are missing or too few.
    """
    config = config or MonitorConfig()
    said = evenly(said, config.most)
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
    taken = best_choice(choices)
    memory: list[MonitorMemory] = []
    if remember:
        memory = [
            remembered(vlm, fit, config, share, batch_size)
            for fit, share in _watching(fits, taken.reads, config)
        ]
    order = [taken, *(each for each in choices if each is not taken)]
    return MonitorsFit(
        _monitors(fits, taken.reads, config),
        tuple(order),
        {reads: fit.tried for reads, fit in fits.items()},
        {
            share: _monitors(fits, taken.reads, replace(config, false_alarms=share))
            for share in shares
        },
        tuple(memory),
    )


def _monitors(
    fits: Mapping[Reads, MonitorFit], answers: tuple[Reads, ...], config: MonitorConfig
) -> tuple[Monitor, ...]:
    """What watches, each at its share of false alarms."""
    return tuple(fit.best.monitor(share) for fit, share in _watching(fits, answers, config))


def _watching(
    fits: Mapping[Reads, MonitorFit], answers: tuple[Reads, ...], config: MonitorConfig
) -> list[tuple[MonitorFit, float]]:
    """The fits of what watches with their shares of false alarms: requests, the answers, which
    divide theirs, and the refusal log-odds of requests."""
    requests = fits["request"]
    found = [(requests, config.share())]
    found += [(fits[reads], config.share(len(answers))) for reads in answers]
    if requests.odds is not None:
        found.append((requests.odds, config.share()))
    return found


def best_choice(choices: Sequence[Choice]) -> Choice:
    """Of those that miss less than a point more than the best, the one with most monitors."""
    best = min(mean_share(each.missed) for each in choices)
    alike = [each for each in choices if mean_share(each.missed) < best + _ALIKE]
    return min(alike, key=lambda each: (-len(each.reads), mean_share(each.missed)))


def evenly(said: Sequence[Said], most: int) -> list[Said]:
    """At most so many answers of each suite and either kind, evenly spread, in their order."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for place, (example, _, harmful) in enumerate(said):
        groups.setdefault((_suite(example), harmful), []).append(place)
    kept: list[int] = []
    for part in groups.values():
        count = min(most, len(part))
        kept += [part[n] for n in np.linspace(0, len(part) - 1, count).round().astype(int)]
    return [said[place] for place in sorted(kept)]


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
    limits = [each.monitor(config.share(len(reads))).threshold for each in watching]
    missed: list[tuple[str, bool]] = []
    alarmed: list[tuple[str, bool]] = []
    for place, each in enumerate(judged):
        raised = any(
            candidate.scores.get(place, -np.inf) > limit
            for candidate, limit in zip(watching, limits, strict=True)
        )
        if each.exchange.request.kind == "malicious":
            missed.append((_suite(each.exchange.request), each.harmful and not raised))
        else:
            alarmed.append((each.kind, raised))
    return Choice(reads, shares(missed), shares(alarmed))


def _suite(example: Example) -> str:
    return example.suite or example.category or example.kind
