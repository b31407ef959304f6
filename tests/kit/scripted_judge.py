"""A judge whose verdicts a test can foresee; imports nothing heavy, since processes are forked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from care.judges.model_judge import Finding, ModelJudge


class Scripted(ModelJudge):
    """Flags what holds a word; fails on what holds another."""

    def __init__(self, name: str = "scripted", word: str = "red box", fails: str = "") -> None:
        super().__init__(name)
        self.word, self.fails = word, fails
        self.asked: list[str] = []

    def identity(self) -> dict[str, Any]:
        return {"judge": self.name, "word": self.word}

    def find(self, goals: Sequence[str], responses: Sequence[str], images: Any) -> list[Finding]:
        self.asked += goals
        return [
            Finding(None, error="no reply")
            if self.fails and self.fails in goal
            else Finding(self.word in response, label="said")
            for goal, response in zip(goals, responses, strict=True)
        ]
