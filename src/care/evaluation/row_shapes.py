"""What the rows and files of an evaluation hold, field by field, for whoever reads them back.

Not here: how it is checked (`shapes`), and the manifest (`runs`).
"""

from __future__ import annotations

from typing import get_args

from care.data.example import ExampleKind, SuiteRole
from care.judges.base import Outcome
from care.runs.shapes import NUMBER, NUMBER_OR_NONE, TEXT_OR_NONE, Kind

_OUTCOMES = (*get_args(Outcome), None)

ANSWER: Kind = {
    "key": str, "response": TEXT_OR_NONE, "error": TEXT_OR_NONE, "digest?": TEXT_OR_NONE,
}  # fmt: skip
"""A row of answers.jsonl."""

ROW: Kind = ANSWER | {
    "suite": str, "role": get_args(SuiteRole), "example": str, "kind": get_args(ExampleKind),
    "category": str, "defense": str, "seed": int, "prompt": str, "goal": str,
    "outcome": _OUTCOMES, "correct": frozenset({bool, None}), "opening?": str,
}  # fmt: skip
"""A row of rows.jsonl."""

VERDICT: Kind = {
    "key": str, "row": str, "judge": str, "attempt": int, "outcome": _OUTCOMES,
    "flagged": frozenset({bool, None}), "error": TEXT_OR_NONE, "score?": NUMBER_OR_NONE,
}  # fmt: skip
"""A row of verdicts.jsonl."""

ATTACK: Kind = {
    "config": {"steps": int, "epsilon": NUMBER_OR_NONE},
    "images": {"image": {"loss": NUMBER, "sha256": str}},
    "made_of?": dict,
}
"""attack.json of an image that an evaluation made."""
