"""Write docs/models.md: what can be done with which family, tried on tiny models of each.

python tools/models.py            every family (minutes)
python tools/models.py NAME …     some, as transformers calls them
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kit.architectures.families import FAMILIES
from kit.architectures.matrix import PAGE, line, rendered, tried


def main(names: list[str]) -> int:
    """Try families, and write what came of them."""
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        print(f"{unknown[0]} isn't described in tests/kit/architectures/families.py")
        return 1
    for name in names or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            row = tried(name, FAMILIES[name], Path(folder))
        print(line(row), flush=True)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(rendered(page, [row]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
