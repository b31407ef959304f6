"""What the attacks of an evaluation cost: answers, steps and minutes.

What attacks cost is told before anything is asked: answers, steps of descents and searches, and
minutes, by the pace at which this machine answers and descends. The pace is measured on the bare
model, so a repair's own time isn't in it, nor is what a descent saves that is flat early: the
minutes of descents are an upper bound. Which attacks there are is in `attack_sets`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from care.attacks.pgd import universal_image
from care.attacks.presets import PGDConfig
from care.attacks.variants import SearchedAttack
from care.data.example import Example, Suite
from care.data.small_world.pictures import seeded
from care.data.small_world.scenes import unrelated
from care.defenses.base import Defense
from care.evaluation.adaptive import made_for
from care.evaluation.asked_attacks import AskedVariants, ImageAttack
from care.models.vlm import VLM

_MEASURED = 8
"""Requests that the pace is measured on."""
_STEPS = 3


@dataclass(frozen=True)
class AttackCost:
    """What attacks take on all defenses."""

    answers: int = 0
    """Answers asked for, whether they are stored already or not."""
    steps: int = 0
    """Most steps of descents and searches."""
    passes: int = 0
    """Passes of one request, there or back, in all steps."""

    def __add__(self, other: AttackCost) -> AttackCost:
        return AttackCost(
            self.answers + other.answers, self.steps + other.steps, self.passes + other.passes
        )


def cost(
    in_variants: Sequence[tuple[AskedVariants, Suite]],
    images: Sequence[tuple[ImageAttack, Suite]],
    defenses: Mapping[str, Defense | None],
) -> AttackCost:
    """What attacks on held-out requests take, one pair each."""
    total = AttackCost()
    for one, held in in_variants:
        attack, made = one.attack, len(defenses) if one.by_defense else 1
        if isinstance(attack, SearchedAttack):
            made = len(set(map(attack.sees, defenses.values())))
            steps = attack.search_steps(held) * made
            total += AttackCost(attack.asks, steps, steps * attack.passes)
        total += AttackCost(len(held) * attack.tries * len(defenses) * made)
    for one, held in images:
        config = one.settings()
        made = sum(map(made_for, defenses.values()))
        steps = config.steps * config.restarts * made
        total += AttackCost(len(held) * len(defenses) * made, steps, steps * 3 * config.batch)
    return total


@dataclass(frozen=True)
class Pace:
    """Seconds that this machine takes."""

    answer: float
    """For an answer."""
    step: float
    """For a step of a descent, whatever its requests."""
    one_pass: float
    """For each pass of one request in it."""

    def minutes(self, total: AttackCost) -> float:
        """For all that attacks ask for."""
        descents = total.steps * self.step + total.passes * self.one_pass
        return (total.answers * self.answer + descents) / 60


def told(total: AttackCost, vlm: VLM, requests: Suite, length: int, batch: int) -> str:
    """A sentence that says what the attacks cost, by a pace that is measured here."""
    found = pace(vlm, requests, length, batch)
    one, many = (found.step + 3 * count * found.one_pass for count in (1, _MEASURED))
    return (
        f"The attacks ask for {total.answers} answers and take at most {total.steps} steps: up to "
        f"{found.minutes(total):.0f} minutes at {1 / found.answer:.1f} answers a second and "
        f"{one:.2f} seconds a step of one request, {many:.2f} of {_MEASURED}."
    )


def pace(vlm: VLM, requests: Suite, length: int, batch: int) -> Pace:
    """The pace of answers to these requests, and of descents for few and for many of them."""
    examples = list(requests)[: max(batch, _MEASURED)]
    begun = time.perf_counter()
    vlm.answers(examples, max_new_tokens=length, batch_size=batch)
    answer = (time.perf_counter() - begun) / len(examples)
    few = [replace(example, images=()) for example in examples[:_MEASURED]]
    one = _seconds_a_step(vlm, few[:1])
    if len(few) == 1:
        return Pace(answer, 0.0, one / 3)
    each = (_seconds_a_step(vlm, few) - one) / (3 * (len(few) - 1))
    each = min(max(each, 0.0), one / 3)
    return Pace(answer, one - 3 * each, each)


def _seconds_a_step(vlm: VLM, examples: Sequence[Example]) -> float:
    config = PGDConfig(epsilon=None, steps=_STEPS, step_size=1 / 255, batch=len(examples))
    at: list[float] = []
    universal_image(
        vlm,
        examples,
        ["Sure, here is"] * len(examples),
        unrelated(seeded("pace")),
        config,
        progress=lambda step, loss: at.append(time.perf_counter()),
    )
    return (at[-1] - at[0]) / (_STEPS - 1)
