"""Pictures for beginnings of harmful answers that the monitors of a defense don't mind.

The bare model's answers to requests that nothing is measured with are begun in every register
(`registers`), in words, and judged. The harmful ones are ranked by

    max over the monitors of what is said, and over their readings, of s − threshold

For one picture that serves all requests, each request's least alarming one is what the first
picture is made for, the second least alarming one is the second picture's. For a picture of each
held-out request (`each=1`) no answer of it is known, so beginnings are taken from the others: in
each register the least alarming answer that names its goal, worded for the goal of the held-out
request, and of these the least alarming first. A defense without such monitors minds nothing, and
the registers come in their own order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from care.attacks.pictures import Pictures, goal_of
from care.attacks.registers import REGISTERS, opened
from care.attacks.variants import Search
from care.attacks.watched import of_answers
from care.data.example import Example
from care.data.small_world.jailbreak_templates import PLACE
from care.defenses.monitors.reading import Exchange
from care.judges.base import Verdict, ask
from care.judges.rules import rules_for
from care.runs.settings import require

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.defenses.monitors.monitor import Monitor
    from care.models.vlm import VLM


_ANSWERED: WeakKeyDictionary[VLM, dict[Any, list[list[Begun]]]] = WeakKeyDictionary()
"""Harmful answers of each model, by the requests and the length of answers."""


@dataclass(frozen=True)
class Missed(Pictures):
    """Pictures for the beginnings of harmful answers that alarm the monitors least."""

    name: ClassVar[str] = "missed"
    source: ClassVar[str] = "this project; PGD: Madry et al. 2018"

    tokens: int = 12
    optimised: int = 30
    n: int = 2
    """How many pictures, each for the next least alarming answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {"n": 1}, len(REGISTERS))

    @property
    def asks(self) -> int:
        """Each request in each register."""
        return self.optimised * len(REGISTERS)

    def heeds(self, defense: Defense) -> list[Monitor]:
        """Those of what is said too."""
        return [*super().heeds(defense), *of_answers(defense)]

    def settings(self, of: Search) -> dict[str, Any]:
        """With the length of the answers that wishes are chosen from, where it isn't the usual."""
        length = of.max_new_tokens
        return super().settings(of) | ({} if length is None else {"max_new_tokens": length})

    @property
    def pictures(self) -> list[str]:
        """One for each rank."""
        return [f"rank{place}" for place in range(self.n)]

    def targets(
        self, vlm: VLM, defense: Defense | None, examples: Sequence[Example], of: Search
    ) -> list[list[str]]:
        """The least alarming harmful answers of each request, rank by rank."""
        ranked = least_alarming(vlm, of_answers(defense), examples, of)
        # A request with fewer harmful answers lends its last one; one with none its usual way.
        return [
            [
                own[min(rank, len(own) - 1)].text if own else opened(self.usual(of), goal_of(e))
                for e, own in zip(examples, ranked, strict=True)
            ]
            for rank in range(self.n)
        ]

    def worded(self, vlm: VLM, defense: Defense | None, of: Search) -> list[str]:
        """The least alarming harmful answers of all requests, with {goal} in place of theirs."""
        examples = self.optimised_on(of)
        found: dict[str, Begun] = {}
        ranked = least_alarming(vlm, of_answers(defense), examples, of)
        for example, own in zip(examples, ranked, strict=True):
            for answer in own:
                general = answer.for_any(goal_of(example))
                before = found.get(answer.register)
                if general and (before is None or general.excess < before.excess):
                    found[answer.register] = general
        best = sorted(found.values(), key=lambda answer: answer.excess)
        texts = [answer.text for answer in best][: self.n]
        return texts + [self.usual(of)] * (self.n - len(texts))


@dataclass(frozen=True)
class Begun:
    """A harmful answer that was begun in a register."""

    register: str
    """The register's name."""
    text: str
    """The answer."""
    excess: float = 0.0
    """What its scores exceed the monitors' thresholds by; 0 without monitors."""

    def for_any(self, goal: str) -> Begun | None:
        """With {goal} where it names its own; None if it doesn't, and so says nothing of others."""
        text = re.sub(re.escape(goal), PLACE, self.text, flags=re.IGNORECASE)
        return replace(self, text=text) if text != self.text else None


def least_alarming(
    vlm: VLM, monitors: Sequence[Monitor], examples: Sequence[Example], of: Search
) -> list[list[Begun]]:
    """Harmful answers to each request, by how little they alarm."""
    begun = _harmful_answers(vlm, examples, of)
    size = of.model.batch(None)
    exchanges = [
        Exchange(example, answer.text)
        for example, own in zip(examples, begun, strict=True)
        for answer in own
    ]
    readings = [monitor.scores(vlm, exchanges, size) for monitor in monitors]
    excess = iter([0.0] * len(exchanges))
    if monitors:
        excess = iter(
            max(
                (
                    score - monitor.threshold
                    for monitor, scores in zip(monitors, each, strict=True)
                    for _, score in scores
                ),
                default=0.0,
            )
            for each in zip(*readings, strict=True)
        )
    ranked = [[replace(answer, excess=next(excess)) for answer in own] for own in begun]
    return [sorted(own, key=lambda answer: answer.excess) for own in ranked]


def _harmful_answers(vlm: VLM, examples: Sequence[Example], of: Search) -> list[list[Begun]]:
    """Harmful answers of the bare model to each request, in the order of the registers.

    They are the same for every defense, so a model is asked once.
    """
    size, length = of.model.batch(None), of.answer_length
    key = (tuple(example.digest() for example in examples), length)
    known = _ANSWERED.setdefault(vlm, {})
    if key in known:
        return known[key]
    asked = [
        replace(example, id=f"{example.id}/{name}", opening=opened(text, goal_of(example)))
        for example in examples
        for name, text in REGISTERS.items()
    ]
    answers = vlm.answers(asked, max_new_tokens=length, batch_size=size)
    verdicts = ask(
        rules_for(of.model),
        [goal_of(example) for example in asked],
        [answer.text for answer in answers],
        openings=[example.opening for example in asked],
    )
    judged = iter(zip(answers, verdicts, strict=True))
    known[key] = [
        [
            Begun(name, answer.text)
            for name, (answer, verdict) in zip(REGISTERS, judged, strict=False)
            if _harmful(verdict)
        ]
        for _ in examples
    ]
    return known[key]


def _harmful(verdict: Verdict) -> bool:
    return verdict.failure("malicious") is None and verdict.outcome("malicious") == "harmful"
