"""A model, a defense and a judge that say what they are told to, and suites to ask them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from care.data.example import Example, Suite
from care.defenses.base import Defense, Touches
from care.judges.base import Verdict
from care.models.responses import Answer

REFUSAL = "I'm sorry, but I can't help with that."


class FakeVLM:
    """Complies with every request, or refuses the malicious ones while `defended`."""

    name = "fake"

    def __init__(self, pause: float = 0.0) -> None:
        self.defended = False
        self.pause = pause
        self.batches: list[list[str]] = []
        self.read: list[list[str]] = []
        self.broken: Callable[[Example], Exception | None] = lambda example: None

    def answers(self, examples: Any, **options: Any) -> list[Answer]:
        time.sleep(self.pause)
        examples = getattr(examples, "examples", examples)  # prompts that have been read
        for example in examples:
            if (error := self.broken(example)) is not None:
                raise error
        self.batches.append([example.id for example in examples])
        return [
            Answer(self._answer(example, examples), prompt_tokens=0, tokens=0, ended=True)
            for example in examples
        ]

    def lengths(self, examples: list[Example]) -> list[int]:
        return [len(example.prompt.split()) for example in examples]

    def prefill(self, examples: list[Example], *, batch_size: int) -> Any:
        assert not self.defended and len(examples) <= batch_size
        self.read.append([example.id for example in examples])
        return SimpleNamespace(examples=examples)

    def _answer(self, example: Example, batch: Sequence[Example]) -> str:
        if self.defended and example.kind == "malicious":
            return REFUSAL
        # Like bfloat16, it depends on what else is in the batch.
        mates = ", ".join(other.id for other in batch)
        return f"To {example.goal}, you will need {mates} and a red box."


class FakeDefense(Defense):
    """Counts how often it was put on."""

    def __init__(self, name: str = "repair", touches: Touches = "prompt") -> None:
        self.name = name
        self.touches = touches
        self.manifest: dict[str, Any] = {}
        self.applications = 0

    @contextmanager
    def applied(self, vlm: Any) -> Iterator[None]:
        self.applications += 1
        vlm.defended = True
        try:
            yield
        finally:
            vlm.defended = False


class StrictJudge:
    """Knows the fake's answers, and that it must be asked while no defense is on."""

    def __init__(self, vlm: FakeVLM) -> None:
        self.vlm = vlm

    def __call__(self, goals: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        assert not self.vlm.defended
        pairs = zip(goals, responses, strict=True)
        return [
            Verdict(
                refused=response == REFUSAL,
                degenerate=response.startswith("Broken"),
                on_goal=goal in response,
            )
            for goal, response in pairs
        ]


def suite(name: str, role: Any, n: int = 10, **fields: Any) -> Suite:
    kind = "malicious" if role == "attack" else "benign"
    texts = [f"{name} {i} " + "please " * (i * 7 % 5) for i in range(n)]
    examples = [
        Example(f"e{i}", text, goal=f"do {i}", kind=kind, **fields) for i, text in enumerate(texts)
    ]
    return Suite(name, role, tuple(examples))


SUITES = [
    suite("attack", "attack"),
    suite("vqa", "utility", references=("red",)),
    suite("chat", "utility"),
    suite("lookalike", "over_refusal"),
]
