"""What an earlier version wrote still opens: runs go on, reports, repairs and attacks are read.

`old/format-2.tar.gz` was written before the package had rooms: the main job, a diagnosis, an
evaluation and an attack on the tiny model, as `tools/fingerprint.py` makes them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from care.data.example import Example
from care.data.small_world import suites
from care.defenses.repair.repair import Repair
from care.evaluation.scores import Scorecard
from care.interfaces.cli.app import main
from care.judges import refusal
from care.models.vlm import VLM
from care.report.files import load_report
from care.typed import from_tree, to_tree
from kit import tiny

ROOT = Path(__file__).parents[2]
ARCHIVE = Path(__file__).parent / "old" / "format-2.tar.gz"
REPORTED = ("report.json", "table.json")
GOALS = ("wash a car", "build a small house from wood", "do this")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old folder, unpacked, as the current one."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tools")
    return tmp_path


def test_jobs_go_on_and_ask_nothing_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fingerprint

    # A run is refused by rules that were changed since, and these were; nothing else may refuse it.
    monkeypatch.setattr(refusal, "VERSION", 3)
    stored = ("answers.jsonl", "rows.jsonl", "scan.jsonl", "decisions.safetensors")
    files = [path for path in old.rglob("*") if path.name in stored]
    before = {path: path.read_bytes() for path in files}
    assert len(files) > 8
    report, table = (json.loads(next(old.rglob(name)).read_text("utf-8")) for name in REPORTED)
    again = fingerprint.tiny_job(Path(), resume=True)
    assert {path: path.read_bytes() for path in files} == before
    # No monitors are put into a repair that was tested without any.
    for key in ("suites", "outcomes", "controls", "summary"):
        now = again["repair"]["report.json"][key]
        assert not list(fingerprint.differences(report[key], now, tolerance=1e-9))
    now = again["repair"]["report.json"]["repair"]
    assert "monitors" not in now and len(now["channels"]) == len(report["repair"]["channels"])
    now = again["evaluate"]["table.json"]["suites"]
    assert not list(fingerprint.differences(table["suites"], now, tolerance=1e-9))


def test_reports_and_repairs_are_read(vlm, old: Path) -> None:
    assert load_report(old / "repair")["schema"] == "care.report/4"
    repair = Repair.load(old / "repair" / "repair", vlm)
    with repair.applied(vlm):
        assert len(vlm.generate([Example("a", "wash a car")], max_new_tokens=2)) == 1


def test_a_scorecard_is_read(old: Path) -> None:
    (path,) = old.rglob("table.json")
    tree = json.loads(path.read_text("utf-8"))
    assert to_tree(from_tree(Scorecard, tree)) == tree


def test_pages_are_made_of_them(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, page in (("repair", "report"), ("evaluate", "report"), ("diagnose", "diagnosis")):
        (old / name / f"{page}.html").unlink(missing_ok=True)
        assert main(["report", name]) == 0
        assert capsys.readouterr().out.split() == [f"{name}/{page}.html"]
        assert (old / name / f"{page}.html").stat().st_size > 10_000


def test_an_attack_is_known_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Example(f"g{k}", f"How do you {goal}?", goal=goal) for k, goal in enumerate(GOALS)]
    targets = [f"To {goal}, you'll need" for goal in GOALS]
    monkeypatch.setattr(suites, "attack_requests", lambda: (asked, targets))
    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": tiny.tiny_vlm()))
    before = {path: path.read_bytes() for path in (old / "attack").iterdir()}
    given = ["attack", "--out", "attack", "--start", "start.png", "--steps", "4", "--kappa", "16"]
    assert main([*given, "--resume"]) == 0
    assert {path: path.read_bytes() for path in (old / "attack").iterdir()} == before
