"""Links into the code: what documentation names is where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[`?([^\]`]+)`?\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(
    "page",
    [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(page: Path) -> None:
    for name, target in LINK.findall(page.read_text("utf-8")):
        found = (page.parent / target).resolve()
        assert found.exists(), f"{page.name}: {target} isn't there"
        if found.suffix == ".py" and name.isidentifier():
            assert name in defined(found), f"{page.name}: {target} has no {name}"


def defined(path: Path) -> set[str]:
    """Names of functions, classes and methods that a module defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
