"""Tables of rows, each beside another: the files that hold them, and the cells that are in words.

An ablation and a comparison are written alike: a JSON file with schema and title, and the rows as a
table in Markdown with sentences below it. Not here: which figures a row has, and the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from care.runs.files import write_whole
from care.statistics.intervals import Interval


def write_tree(file: Path, tree: dict[str, Any]) -> None:
    """Write `tree` as JSON into `file`. StorageError if that fails."""
    write_whole(file, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode("ascii"))


def write_table(file: Path, tree: dict[str, Any], markdown: str) -> None:
    """The same, and the Markdown beside it."""
    write_tree(file, tree)
    write_whole(file.with_suffix(".md"), markdown.encode("utf-8"))


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]], sentences: Iterable[str]) -> str:
    """Rows of cells as a table in Markdown, and sentences as a list."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in sentences)]) + "\n"


def told(part: Interval | None, sign: str = "") -> str:
    """A figure with its limits; empty without one."""
    if part is None:
        return ""
    return f"{part.rate:{sign}.2f} [{part.low:{sign}.2f}, {part.high:{sign}.2f}]"
