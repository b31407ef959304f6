"""`care report`: the pages of any run, from its stored files, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from care.errors import DataError
from care.interfaces.cli.app import main
from care.report.ablation import write_ablation
from care.report.files import write_diagnosis, write_report
from care.report.stored import pages_of
from kit.ablations import TABLE
from kit.cards import write_card
from kit.reports import report_tree


@pytest.fixture
def whole(tmp_path):
    """A folder with the files of a run of every kind."""
    write_report(report_tree(), tmp_path)
    write_card(tmp_path)
    write_ablation(TABLE, tmp_path)
    write_diagnosis(report_tree()["diagnosis"], tmp_path, "Diagnosis of org/model")
    return tmp_path


def test_every_page_of_a_run_is_made_again(whole, capsys):
    pages = [
        whole / name for name in ("report.html", "table.html", "ablation.html", "diagnosis.html")
    ]
    for page in pages:
        page.write_text("old")
    before = {file: json.loads(file.read_text()) for file in whole.glob("*.json")}
    assert main(["report", str(whole)]) == 0
    assert capsys.readouterr().out.split("\n") == [*map(str, pages), ""]
    assert all(page.stat().st_size > 1000 for page in pages)
    assert {file: json.loads(file.read_text()) for file in before} == before
    assert "Diagnosis of a model" in pages[3].read_text()


def test_one_file_is_enough(whole):
    for name, page in (("ablation.json", "ablation.html"), ("table.json", "table.html")):
        assert pages_of(whole / name) == [whole / page]
    (whole / "mine.json").write_bytes((whole / "report.json").read_bytes())
    assert pages_of(whole / "mine.json") == [whole / "report.html"]


def test_a_diagnosis_is_called_by_its_model(whole):
    facts: dict[str, Any] = {"schema": "care.run/1", "created": "2026-01-01", "model": "org/m"}
    facts |= {"config": {}, "config_digest": "", "stages": [], "resumed": []}
    (whole / "manifest.json").write_text(json.dumps(facts))
    pages_of(whole / "diagnosis.json")
    assert "Diagnosis of org/m" in (whole / "diagnosis.html").read_text()


def test_where_nothing_can_be_shown_it_says_what_to_pass(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            DataError, match=r"pass the folder of a finished run, or its report\.json"
        ):
            pages_of(place)


@pytest.mark.slow
def test_no_torch_is_imported(whole):
    code = (
        "import sys; from pathlib import Path; from care.report.stored import pages_of\n"
        "assert len(pages_of(Path('.'))) == 4\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=whole, check=False).returncode == 0
