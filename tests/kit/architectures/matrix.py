"""Every family through every check, and the page that says what came of it: `docs/models.md`.

    python tools/models.py            try them all and write the page anew
    python tools/models.py NAME …     try some, and write their rows

A cell is ✓ where the check passed, – where the package refused in a sentence of its own, ⊘ where
transformers can't do it itself, and ✗ where something else went wrong; the notes say why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import transformers

from care.errors import CareError
from care.models.vlm import VLM
from kit.architectures.building import Family, build
from kit.architectures.case import Case, Untried, Upstream
from kit.architectures.checks import CHECKS

YES, REFUSED, FAILED, UPSTREAM, UNTRIED = "✓", "–", "✗", "⊘", ""
PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
_TABLE = re.compile(r"(<!-- models of transformers )\S+( -->\n).*(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """What came of one family."""

    name: str
    processor: str
    """Whose processor it was: `own`, `stub`, or nothing where none was asked."""
    marks: dict[str, str] = field(default_factory=dict)
    """Of each check; none of a family that can't be used at all."""
    why: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What was said, and of which checks; of none where the whole family is refused."""


def tried(name: str, family: Family, folder: Path) -> Row:
    """Build a family's tiny model and try everything on it."""
    if family.missing:
        return Row(name, "", why={f"not built: {family.missing}": ()})
    processor = "own" if family.stub is None else "stub"
    try:
        vlm = VLM(*build(name, family), name)
    except CareError as error:
        return Row(name, "", why={f"refused: {_said(error, name)}": ()})
    case = Case(vlm, family.adds, folder, family.apart, family.stub is not None)
    marks: dict[str, str] = {}
    why: dict[str, tuple[str, ...]] = {family.note: ()} if family.note else {}
    for head, check in CHECKS.items():
        marks[head] = YES
        try:
            check(case)
        except CareError as error:
            marks[head], said = REFUSED, _said(error, name)
        except Upstream as error:
            marks[head], said = UPSTREAM, _said(error, name)
        except Untried as error:
            marks[head], said = UNTRIED, _said(error, name)
        except Exception as error:
            marks[head], said = FAILED, f"{type(error).__name__}: {_said(error, name)}"
            if head in family.upstream:
                marks[head], said = UPSTREAM, family.upstream[head]
        if marks[head] != YES:
            why[said] = (*why.get(said, ()), head)
    return Row(name, processor, marks, why)


def rendered(text: str, rows: list[Row]) -> str:
    """The page with a table of these rows; rows of other families stay as they are."""
    kept = {line.split("|")[1].strip(" `"): line for line in lines(text)}
    kept |= {row.name: line(row) for row in rows}
    heads = ["family", *CHECKS, "processor", "notes"]
    table = "\n".join(
        [
            "| " + " | ".join(heads) + " |",
            "|" + "---|" * len(heads),
            *(kept[name] for name in sorted(kept)),
        ]
    )
    version = transformers.__version__
    return _TABLE.sub(lambda found: f"{found[1]}{version}{found[2]}{table}\n{found[3]}", text)


def line(row: Row) -> str:
    """The row as the page has it."""
    told = [
        f"{', '.join(heads)}: {said}" if heads else said
        for said, heads in sorted(row.why.items(), key=lambda one: one[1])
    ]
    notes = "; ".join(told).replace("|", "\\|")
    marks = [row.marks.get(head, "") for head in CHECKS]
    return "| " + " | ".join([f"`{row.name}`", *marks, row.processor, notes]) + " |"


def lines(text: str) -> list[str]:
    """The rows of the page's table."""
    return [one for one in text.splitlines() if one.startswith("| `")]


def version_of(text: str) -> str:
    """The release of transformers that the page speaks of."""
    found = re.search(r"<!-- models of transformers (\S+) -->", text)
    assert found is not None
    return found[1]


def _said(error: Exception, name: str) -> str:
    """The first words of an error, without what differs from run to run."""
    said = " ".join(str(error).split()).replace(f"{name} ", "it ")
    said = re.split(r"; |: (?=one image)", said)[0]
    return re.sub(r"\d+\.\d+(e-?\d+)?", "…", said)[:200].rstrip(". ")
