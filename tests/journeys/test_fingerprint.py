"""Public names, help of every command and a whole job on a tiny model are as they were last seen.

A change that is meant is taken down anew, and its difference read before it is committed:

    python tools/fingerprint.py take tests/journeys/fingerprint.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from tools import fingerprint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "fingerprint.py"
STORED = Path(__file__).with_name("fingerprint.json")

TOLERANCE = 1e-3
"""How far figures lie apart on machines that round differently; twenty times what was seen."""


def compared(one: Path, other: Path, *more: str) -> tuple[int, str]:
    """What the tool says of two files, and its exit code."""
    arguments = ["fingerprint.py", "compare", str(one), str(other), *more]
    with redirect_stdout(StringIO()) as said, patch.object(sys, "argv", arguments):
        return fingerprint.main(), said.getvalue()


def test_nothing_changed(tmp_path: Path) -> None:
    now = tmp_path / "now.json"
    subprocess.run([sys.executable, str(TOOL), "take", str(now)], check=True)
    code, said = compared(STORED, now, f"--tolerance={TOLERANCE}")
    assert code == 0, f"{said}{__doc__}"


def test_what_differs_is_told(tmp_path: Path) -> None:
    other = json.loads(STORED.read_text("utf-8"))
    other["names"]["Repair"] = "module"
    del other["job"]["repair"]["report.json"]["schema"]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(other))
    code, said = compared(STORED, changed)
    assert code == 1
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "/job/repair/report.json/schema",
        "/names/Repair",
    ]
