"""Faces: a room's `__init__` is a table of names, which type checkers read as Python does."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import care

ROOT = Path(care.__file__).parent
FACES = sorted(path for path in ROOT.rglob("__init__.py") if path.stat().st_size)


@pytest.mark.parametrize("path", FACES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_face_is_a_table_without_code(path: Path) -> None:
    package = ".".join(("care", *path.parent.relative_to(ROOT).parts))
    face = import_module(package)
    tree = ast.parse(path.read_text("utf-8"))
    checked = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(checked) == sorted(getattr(face, "__all__", []))
    modules = {file.stem for file in path.parent.glob("*.py")}
    modules |= {folder.name for folder in path.parent.iterdir() if folder.is_dir()}
    for name, module in checked.items():
        assert getattr(face, name) is not None
        assert name in dir(face)
        assert name not in modules or module == package, f"{package}.{name} is a module too"
    kinds = (ast.FunctionDef, ast.ClassDef, ast.For, ast.With)
    assert not [node for node in tree.body if isinstance(node, kinds)]


@pytest.mark.parametrize("package", ["care", "care.judges", "care.data", "care.interfaces.cli"])
def test_importing_a_face_loads_nothing_heavy(package: str) -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'importlib.metadata'}"
    code = f"import sys, {package}; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", ["runs", "statistics", "report"])
def test_rooms_of_figures_load_no_torch(room: str) -> None:
    """`care report` and everything else that only reads figures is done before torch is loaded."""
    files = sorted((ROOT / room).glob("[!_]*.py"))
    modules = ", ".join(f"care.{room}.{file.stem}" for file in files)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_class_is_called_as_another_one() -> None:
    """One name, one thing; what is private to its module is its own business."""
    homes: dict[str, list[str]] = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in homes.items() if len(found) > 1}
