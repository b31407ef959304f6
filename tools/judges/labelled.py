"""Answers that were labelled by hand to measure the offline judge; nothing is trained on them.

- `refusals`: `text`, whether it is a full refusal (`refused`), and its `source` (`agreement`);
- `short_answers`: `kind`, `answer`, and what is `stated` or whether it is `right` (module
  `short_answers`).

The answers that the refusal classifier is trained on come with the package
(`care.judges.refusal_classifier`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")


def refusals() -> list[dict[str, Any]]:
    """Answers with labels of full refusals, some with labels of outcomes too."""
    return _rows("refusal_labelled.jsonl")


def short_answers() -> list[dict[str, Any]]:
    """Short answers with what they state."""
    return _rows("short_answers.jsonl")


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").split("\n") if line]
