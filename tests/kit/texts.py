"""Texts that rules are tested on: cases with the label each must get, and any text at all.

Cases lie in `tests/ROOM/cases/NAME.jsonl`, one a line: the `text`, its `label`, what else the test
asks for, and a short `why` where that helps. An empty file, other keys or the same case twice end
the whole run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

TESTS = Path(__file__).parents[1]

any_text = st.text(alphabet=st.characters(), max_size=300)
"""Surrogates too: a broken tokenizer can produce them."""


def read_cases(file: str, *inputs: str) -> list[dict[str, Any]]:
    """The cases of "ROOM/NAME", each with `inputs`, text and label."""
    room, name = file.split("/")
    path, rows, seen = TESTS / room / "cases" / f"{name}.jsonl", [], set()
    wanted = {*inputs, "text", "label"}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        if row.keys() - {"why"} != wanted:
            raise ValueError(f"{path}, line {number}: keys {sorted(row)}, not {sorted(wanted)}.")
        asked = json.dumps([row[key] for key in (*inputs, "text")])
        if asked in seen:
            raise ValueError(f"{path}, line {number}: the same case stands above.")
        seen.add(asked)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no cases.")
    return rows


def cases(file: str, *inputs: str) -> pytest.MarkDecorator:
    """Parametrise a test by `inputs`, `text` and `label`; ids tell line, label, reason and text."""
    names = (*inputs, "text", "label")
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(*(row[name] for name in names), id=_id(number, row))
            for number, row in enumerate(read_cases(file, *inputs), 1)
        ],
    )


def _id(line: int, row: dict[str, Any]) -> str:
    said = (str(row["label"]), row.get("why", ""), row["text"])
    return ", ".join([f"line {line}", *(" ".join(part.split())[:40] for part in said if part)])
