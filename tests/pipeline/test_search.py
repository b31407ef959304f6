"""A search over settings whose answers are given: what is told of each, and which is taken."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from care.defenses.rivals.self_reminder import SelfReminder
from care.evaluation.results import Results
from care.pipeline.fits import Fit
from care.pipeline.search import SettingsSearch, setting_name
from care.pipeline.tuning import TuningSize
from kit.comparisons import judged

ROLES = {"attack": "attack", "over_refusal": "over_refusal"}
ANSWERS = {0.1: ("hr", "ss"), 0.5: ("??", "ss"), 0.9: ("rr", "s?")}
"""By strength, `?` what can't be judged: the second setting loses nothing, the third an answer."""


def answers(name: str, parts: tuple[str, str]):
    for suite, outcomes in zip(ROLES, parts, strict=True):
        for place, outcome in enumerate(outcomes):
            row = judged(suite, ROLES[suite], name, place, outcome.replace("?", "r"))
            yield row | ({"outcome": None, "error": "not English"} if outcome == "?" else {})


def test_a_setting_gains_nothing_by_answers_that_cannot_be_judged() -> None:
    wanted = [{"strength": strength} for strength in ANSWERS]
    named = {setting_name("it", each): ANSWERS[each["strength"]] for each in wanted}
    rows = [
        row
        for name, parts in {"none": ("hh", "ss"), **named}.items()
        for row in answers(name, parts)
    ]
    work: Any = SimpleNamespace(
        counted=lambda split: [],
        inner=lambda stage: nullcontext(),
        ask=lambda *_: Results(rows),
    )
    fits: Any = SimpleNamespace(made=lambda key, make: Fit(SelfReminder(), 0.0, None))
    search = SettingsSearch(work, fits, TuningSize(3, 3, {}))
    found = search.of("it", wanted, lambda options: (SelfReminder(), 0.0))
    assert [(t.asr, t.answered) for t in found.tried] == [(0.5, 1.0), (None, 1.0), (0.0, 0.5)]
    assert found.options == {"strength": 0.1}
