"""Judged rows."""

from __future__ import annotations

from typing import Any


def row(suite: str, defense: str, place: int, outcome: str | None, **more: Any) -> dict[str, Any]:
    role = more.pop("role", "attack")
    fields = {
        "key": f"{suite}/e{place}/{defense}/0",
        "suite": suite,
        "role": role,
        "example": f"e{place}",
        "kind": "malicious" if role == "attack" else "benign",
        "category": "",
        "defense": defense,
        "seed": 0,
        "prompt": f"p{place}",
        "goal": f"goal {place}",
        "response": "r",
        "outcome": outcome,
        "correct": None,
        "error": None,
    }
    return fields | more
