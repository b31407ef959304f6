"""Pages that say what the code says: tables of docs/report.md, and docs/rivals.md.

    python tools/docs.py            write them anew
    python tools/docs.py --check    exit with 1 if they aren't what the types say

A table stands between `<!-- table: TYPE -->` and `<!-- end -->`; TYPE is the name of a type that
a report, an evaluation, an ablation or a comparison is made of. Rivals stand between
`<!-- rivals -->` and `<!-- end -->`: the header of each one's module, and what its class declares.
Everything else of a page is left alone.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from care.defenses.base import Defense
from care.defenses.known import DEFENSES, kind_of
from care.evaluation.scores import Scorecard
from care.report.ablation import Ablation
from care.report.comparison import ComparisonFile
from care.report.described import table, types_of
from care.report.schema import Report
from care.report.studies import StudiesFile

PAGE = Path(__file__).resolve().parents[1] / "docs" / "report.md"
RIVALS = PAGE.with_name("rivals.md")
FILES = (Report, Scorecard, Ablation, ComparisonFile, StudiesFile)
"""The types of report.json, table.json, ablation.json, and a comparison's table and studies."""
_RIVALS = re.compile(r"(<!-- rivals -->\n).*(<!-- end -->)", re.DOTALL)
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


def rendered_rivals(text: str) -> str:
    """The page with what the modules of rivals say."""
    names = sorted(name for name, place in DEFENSES.items() if ".rivals." in place)
    kinds = {name: kind_of(name) for name in names}
    told = "\n".join(_rival(name, kind) for name, kind in kinds.items() if kind is not None)
    return _RIVALS.sub(lambda found: f"{found[1]}{told}\n{found[2]}", text)


def _rival(name: str, kind: type[Defense]) -> str:
    header = inspect.cleandoc(inspect.getmodule(kind).__doc__ or "")
    cost = kind.cost
    beyond = [
        f"{amount:g} {what}"
        for amount, what in ((cost.forwards, "passes"), (cost.answers, "answers"))
        if amount
    ]
    rows = [
        ("paper", kind.paper),
        ("beyond the bare answer", " and ".join(beyond) or "nothing but the edit itself"),
        ("trains", "yes" if cost.trains else "no"),
        ("needs", ", ".join(cost.needs) or "nothing: it isn't fitted"),
        *((f"`{key}` tried", ", ".join(map(str, tried))) for key, tried in kind.searched.items()),
    ]
    table = "\n".join(f"| {what} | {said} |" for what, said in rows)
    return f"## {name}\n\n{header}\n\n| | |\n|---|---|\n{table}\n"


def main() -> int:
    """Write the pages, or check them."""
    stale = 0
    for page, make in ((PAGE, rendered), (RIVALS, rendered_rivals)):
        text = page.read_text(encoding="utf-8")
        if make(text) == text:
            continue
        if "--check" in sys.argv:
            print(f"{page} isn't what the code says; run python tools/docs.py")
            stale = 1
        else:
            page.write_text(make(text), encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
