"""The further studies of a comparison: `studies.json` beside its table.json, and as Markdown.

The page and the Markdown of the comparison (`care.report.comparison`) show them where the file is
there. Nothing here computes a figure; their charts are in `study_charts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from care.evaluation.comparison_studies import Studies
from care.report.rows_table import as_table, told, write_tree
from care.runs.reading import read_json
from care.typed import from_tree, to_tree

SCHEMA = "care.studies/1"
"""Name and version of the layout of studies.json."""
NAME = "studies.json"


@dataclass(frozen=True, kw_only=True)
class StudiesFile(Studies):
    """The whole of studies.json."""

    schema: Literal["care.studies/1"]
    """Name and version of this layout."""


def write_studies(studies: Studies, folder: Path) -> Path:
    """Write studies.json into a folder; its path. StorageError if that fails."""
    tree = {"schema": SCHEMA, **to_tree(studies, "The studies")}
    write_tree(folder / NAME, tree)
    return folder / NAME


def load_studies(folder: Path) -> StudiesFile | None:
    """The studies beside a comparison; None without any, DataError for what isn't one."""
    file = folder / NAME
    if not file.is_file():
        return None
    tree = read_json(file, "studies", otherwise="remove it and ask for the studies again")
    return from_tree(StudiesFile, tree, strict=False, what=f"The studies {file}")


def as_markdown(studies: Studies) -> str:
    """A table for each study that is there, and what they say as a list."""
    return "\n" + "\n".join(_tables(studies))


def _tables(studies: Studies) -> Iterator[str]:
    if studies.families:
        head = ["defense", "unseen family", "ASR, seen", "ASR, unseen", "change", "p (Holm)"]
        yield as_table(head, _families(studies), ())
    if studies.sizes:
        head = ["defense", "requests of each class", "mean ASR", "harmless answered", "utility"]
        yield as_table(head, _sizes(studies), ())
    if studies.strengths:
        head = ["defense", "strength", "ASR, validation", "harmless answered", "utility"]
        yield as_table(head, _strengths(studies), ())
    yield "\n".join(f"- {sentence}" for sentence in (*studies.claims, *studies.notes)) + "\n"


def _families(studies: Studies) -> Iterator[Sequence[str]]:
    for row in studies.families:
        if row.against is None:
            yield [row.defense, row.family, f"not fitted: {row.failed}", "", "", ""]
        else:
            change, p = told(row.against.change, "+"), f"{row.against.p_holm:.2g}"
            yield [row.defense, row.family, told(row.seen), told(row.unseen), change, p]


def _sizes(studies: Studies) -> Iterator[Sequence[str]]:
    for row in studies.sizes:
        figures = [told(row.asr), told(row.answered), told(row.utility)]
        failed = [f"not fitted: {row.failed}", "", ""]
        yield [row.defense, str(row.most), *(figures if row.failed is None else failed)]


def _strengths(studies: Studies) -> Iterator[Sequence[str]]:
    for row in studies.strengths:
        strength = f"{row.strength:g} (× {row.factor:g})"
        yield [row.defense, strength, told(row.asr), told(row.answered), told(row.utility)]
