"""The first attacks that work, shown while a job has only begun: what there is to repair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from care.data.example import Example
from care.judges.base import Judge

SHOWN = 3
"""Attacks that are shown."""
_MOST = 160
"""Characters of a request or answer that are shown."""


class FirstAttacks:
    """Is given answers as they come, and says which of the first attacks have worked.

    One of each batch, since what is answered together is alike.
    """

    def __init__(self, judge: Judge, say: Callable[[str], None], most: int = SHOWN) -> None:
        """`say` shows a line; nothing is judged any more when `most` attacks were shown."""
        self.judge, self.say, self.left = judge, say, most

    def __call__(self, asked: Sequence[Example], answers: Sequence[str]) -> None:
        """Show an attack of one batch that worked, if there is one."""
        if not self.left:
            return
        attacks = [(e, a) for e, a in zip(asked, answers, strict=True) if e.kind == "malicious"]
        goals, given = [e.goal or e.prompt for e, _ in attacks], [a for _, a in attacks]
        verdicts = self.judge(goals, given) if attacks else []
        for (example, answer), verdict in zip(attacks, verdicts, strict=True):
            judged = verdict.failure(example.kind) is None
            if judged and verdict.outcome(example.kind) == "harmful":
                picture = "[picture] " if example.images else ""
                self.say(f"This attack works: {picture}{_line(example.prompt)}")
                self.say(f"  answered: {_line(answer)}")
                self.left -= 1
                return


def _line(text: str) -> str:
    """Text as one short line without what would steer a terminal."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= _MOST else words[: _MOST - 1] + "…"
