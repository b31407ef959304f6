"""`care verify`: from a model and a repair in folders to a page and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care.defenses.artefact import save
from care.evaluation.verification import Verification
from care.interfaces.cli import app as cli
from care.typed import from_tree
from kit import tiny
from kit.artefacts import made
from kit.jobs import write_requests

ASKED = ["--suite", "bad.jsonl", "--utility", "good.jsonl", "--max-new-tokens", "3", "--out", "v"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A model, a repair, and two suites of two requests."""
    model, processor = tiny.tiny_llava()
    model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    save(made(), tmp_path / "repair")
    write_requests(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_page_and_an_exit_code(world, capsys):
    assert cli.main(["verify", "tiny", "repair", *ASKED, "--max-lost", "1"]) == 0
    out = capsys.readouterr().out
    tree = json.loads(Path("v/verification.json").read_text())
    found = from_tree(Verification, tree)
    assert found.passed and (found.model, found.repair) == ("tiny", "repair")
    assert found.digest == json.loads(Path("repair/repair.json").read_text())["sha256"]
    assert len(found.checks) == 8 and all(check.sentence in out for check in found.checks)
    assert Path("v/verification.md").read_text() == found.page()
    assert out.endswith("v/verification.md\n")
    save(made().with_strength(0.0), Path("nothing"))
    assert cli.main(["verify", "tiny", "nothing", *ASKED]) == 1
    assert "output changes      FAILED" in capsys.readouterr().out


def test_wrong_use_is_one_sentence(world, capsys):
    assert cli.main(["verify", "tiny"]) == 2
    assert "Missing argument 'repair'" in capsys.readouterr().err
    assert cli.main(["verify", "tiny", "missing", *ASKED]) == 2
    assert "missing" in capsys.readouterr().err
