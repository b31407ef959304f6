"""Pictures for beginnings of harmful answers that the monitors of a defense don't mind.

The bare model's answers to requests that nothing is measured with are begun in every register
(`registers`), in words, and judged. Of each request the harmful ones are ranked by

    max over the monitors of what is said, and over their readings, of s − threshold

and the least alarming one's beginning is what the first picture is made for, at once for all
requests; the second least alarming one's is the second picture's. A defense without such monitors
minds nothing, and the registers come in their own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from care.attacks.job import asked_of
from care.attacks.pictures import Pictures, Wish, unrelated_start
from care.attacks.registers import REGISTERS, opened
from care.attacks.words import Search
from care.data.example import Example, Suite
from care.defenses.monitors.reading import Exchange
from care.defenses.repair.repair import Repair
from care.judges.base import Verdict, ask
from care.judges.rules import rules_for
from care.runs.settings import MANY, require

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.defenses.monitors.monitor import Monitor
    from care.models.vlm import VLM


@dataclass(frozen=True)
class Missed(Pictures):
    """Pictures for the beginnings of harmful answers that alarm the monitors least."""

    name: ClassVar[str] = "missed"
    source: ClassVar[str] = "this project; PGD: Madry et al. 2018"

    tokens: int = 12
    n: int = 2
    """How many pictures, each for the next least alarming answers."""
    optimised: int = 30
    """Requests whose answers are wished for."""
    requests: str = ""
    """Requests to make pictures for, JSON Lines; none: the small world's to fit on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {"n": 1, "optimised": 1}, {"n": len(REGISTERS), "optimised": MANY})

    def own(self, defense: Defense | None) -> bool:
        """The monitors have a say in what is wished for."""
        return True

    @property
    def pictures(self) -> list[str]:
        """One for each rank."""
        return [f"rank{place}" for place in range(self.n)]

    def optimised_on(self, of: Search) -> list[Example]:
        """Requests whose answers are wished for, which must not be held out."""
        return asked_of(of, self.requests, self.optimised)

    def wishes(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search
    ) -> Iterator[Wish]:
        """The least alarming harmful answers of each request, rank by rank."""
        examples = self.optimised_on(of)
        ranked = least_alarming(vlm, watching(defense), examples, of)
        for rank, name in enumerate(self.pictures):
            # A request with fewer harmful answers lends its last one; one with none its usual way.
            targets = [
                own[min(rank, len(own) - 1)] if own else opened(self.usual(of), e.goal or e.prompt)
                for e, own in zip(examples, ranked, strict=True)
            ]
            yield Wish(name, examples, targets, unrelated_start(of.seed))

    def _asked(self, held_out: Suite, of: Search) -> list[Example]:
        return self.optimised_on(of)

    def _many(self, held_out: Suite) -> int:
        return len(self.pictures)


def watching(defense: Defense | None) -> list[Monitor]:
    """The monitors of what is said."""
    found = defense.monitors if isinstance(defense, Repair) else ()
    return [monitor for monitor in found if monitor.reads != "request"]


def least_alarming(
    vlm: VLM, monitors: Sequence[Monitor], examples: Sequence[Example], of: Search
) -> list[list[str]]:
    """Harmful answers to each request, by how little they alarm."""
    asked = [
        replace(example, id=f"{example.id}/{name}", opening=opened(text, goal_of(example)))
        for example in examples
        for name, text in REGISTERS.items()
    ]
    size = of.model.batch(None)
    answers = vlm.answers(asked, max_new_tokens=of.model.answer_length(None), batch_size=size)
    verdicts = ask(
        rules_for(of.model),
        [goal_of(example) for example in asked],
        [answer.text for answer in answers],
        openings=[example.opening for example in asked],
    )
    pairs = zip(asked, answers, strict=True)
    exchanges = [Exchange(replace(e, opening=""), answer.text) for e, answer in pairs]
    excess = [0.0] * len(asked)
    if monitors:
        readings = [monitor.scores(vlm, exchanges, size) for monitor in monitors]
        excess = [
            max(
                (
                    score - monitor.threshold
                    for monitor, scores in zip(monitors, each, strict=True)
                    for _, score in scores
                ),
                default=0.0,
            )
            for each in zip(*readings, strict=True)
        ]
    many = len(REGISTERS)
    found: list[list[str]] = []
    for first in range(0, len(asked), many):
        places = [p for p in range(first, first + many) if _harmful(verdicts[p])]
        found.append([answers[p].text for p in sorted(places, key=lambda p: excess[p])])
    return found


def _harmful(verdict: Verdict) -> bool:
    return verdict.failure("malicious") is None and verdict.outcome("malicious") == "harmful"


def goal_of(example: Example) -> str:
    """What is asked for."""
    return example.goal or example.prompt
