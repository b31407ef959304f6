"""Links into the code: what documentation and messages name is where they say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from care.interfaces.cli.registry import commands

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
CODE = [
    path
    for folder in ("src", "tests", "tools", "recipes", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
DOTTED = re.compile(r"`(care(?:\.\w+)+)(?!\S*/\d)")
COMMAND = re.compile(r"`care\s+([a-z]+)(?:\s+([a-z]+))?")
SHELL = re.compile(r"^care ([a-z]+)(?: ([a-z]+))?", re.MULTILINE)
LINK = re.compile(r"\[`?([^\]`]+)`?\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
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


# What the log says of earlier days is as it was then.
WRITTEN = [page for page in PAGES if page.name != "log.md"]


def test_dotted_names_are_names_of_the_code() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*WRITTEN, *CODE]
        for name in set(DOTTED.findall(path.read_text("utf-8")))
        if not is_there(name)
    ]
    assert not wrong


def is_there(name: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        try:
            found: Any = import_module(".".join(words[:length]))
        except ModuleNotFoundError:
            continue
        for word in words[length:]:
            if is_dataclass(found) and word in {field.name for field in fields(found)}:
                return True
            if not hasattr(found, word):
                return False
            found = getattr(found, word)
        return True
    return False


def test_commands_that_are_named_are_there() -> None:
    known = {entry.words for entry in commands()}
    wrong = [
        f"{place}: care {first} {second}".rstrip()
        for place, first, second in commands_named()
        if (first,) not in known and (first, second) not in known
    ]
    assert not wrong


def commands_named() -> Iterator[tuple[str, str, str]]:
    """Where a command is named in documentation or in a text of the package, and its words."""
    for page in WRITTEN:
        text = page.read_text("utf-8")
        for words in COMMAND.findall(text) + SHELL.findall(text):
            yield page.name, *words
    for path in CODE:
        if path.is_relative_to(ROOT / "src"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for words in COMMAND.findall(node.value):
                        yield path.name, *words
