"""The tables of docs/report.md, from the types of a report, an evaluation, an ablation and a
comparison.

    python tools/docs.py            write them anew
    python tools/docs.py --check    exit with 1 if they aren't what the types say

A table stands between `<!-- table: TYPE -->` and `<!-- end -->`; TYPE is the name of a type that
one of the four is made of. Everything else of the page is left alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from care.evaluation.scores import Scorecard
from care.report.ablation import Ablation
from care.report.comparison import ComparisonFile
from care.report.described import table, types_of
from care.report.schema import Report

PAGE = Path(__file__).resolve().parents[1] / "docs" / "report.md"
FILES = (Report, Scorecard, Ablation, ComparisonFile)
"""The types of report.json, table.json, ablation.json and a comparison's table.json."""
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def known() -> dict[str, type]:
    """All types that the files are made of, by name; a name stands for one of them."""
    found: dict[str, type] = {}
    for kind in (kind for file in FILES for kind in types_of(file)):
        if found.setdefault(kind.__name__, kind) is not kind:
            raise TypeError(f"two types of docs/report.md have one name: {kind.__name__}")
    return found


def rendered(text: str) -> str:
    """The page with its tables as the types say."""
    types = known()
    return _TABLE.sub(lambda found: f"{found[1]}{table(types[found[2]])}\n{found[3]}", text)


def main() -> int:
    """Write the page, or check it."""
    text = PAGE.read_text(encoding="utf-8")
    if rendered(text) == text:
        return 0
    if "--check" in sys.argv:
        print(f"{PAGE} isn't what the types say; run python tools/docs.py")
        return 1
    PAGE.write_text(rendered(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
