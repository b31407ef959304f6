"""The main job end to end on the embedded model, small: its report, and resuming it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from care import jobs, pipeline
from care.diagnosis import DiagnosisConfig
from care.errors import UsageError
from care.jobs import Job
from care.repair import Repair
from care.rows import Rows

pytestmark = pytest.mark.embedded

LENGTHS = {"beside-image": 60, "text-jailbreak": 60, "pictured-goal": 12, "direct": 8}


@pytest.fixture(scope="module")
def small(embedded_vlm):
    """The main job with few examples, on a model that is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "FIT_LENGTHS", dict.fromkeys(jobs.FIT_LENGTHS, 8) | LENGTHS)
        patch.setattr(jobs, "SELECTION_LENGTH", 2)
        patch.setattr(pipeline, "SCAN_LENGTH", 2)
        patch.setattr(pipeline, "scanned_sites", lambda n, kind: scanned(n, kind)[-2:])
        patch.setattr(pipeline, "load_model", lambda job: embedded_vlm)
        diagnosis = partial(
            DiagnosisConfig, max_attacks=3, max_benign=3, top_sites=1, generate_examples=2
        )
        patch.setattr(pipeline, "DiagnosisConfig", diagnosis)
        yield partial(Job, test_length=2, max_new_tokens=8)


scanned = pipeline.scanned_sites


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, pipeline.repair(small(out=out))


def numbers(tree: dict[str, Any]) -> dict[str, Any]:
    kept = ("suites", "outcomes", "controls", "diagnosis", "repair", "examples", "attribution")
    return {key: tree[key] for key in kept}


def test_the_report_holds_what_its_schema_promises(finished):
    out, tree = finished
    assert {s["name"] for s in tree["suites"]} == set(LENGTHS) | {
        *("pgd-32", "pgd-unconstrained", "benign", "benign-image", "vqa", "naming"),
        *("lookalike", "lookalike-image", "benign-wrapped", "benign-pictured"),
    }
    assert all(s["n"] == 2 for s in tree["suites"])
    assert {"random subspace", "difference of means"} <= set(tree["controls"])
    stages = [stage["name"] for stage in tree["cost"]["stages"]]
    assert stages == [
        *("model", "material", "diagnosis", "channels", "selection"),
        *("evaluation", "controls", "report"),
    ]
    assert tree["diagnosis"]["channels"]["sites"][0]["n_attacks"] == 12
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_the_artefact_loads_and_repairs(finished, embedded_vlm):
    out, tree = finished
    repair = Repair.from_pretrained(out / "repair", embedded_vlm)
    assert [str(c.site) for c in repair.channels] == [c["site"] for c in tree["repair"]["channels"]]
    table = pipeline.evaluate(
        Job(out=out.parent / "again", test_length=2), [out / "repair"], ["direct", "benign"]
    )
    assert [suite["name"] for suite in table["suites"]] == ["direct", "benign"]
    assert list(table["suites"][0]["defenses"]) == ["none", "repair"]


def test_a_file_of_examples_is_evaluated(small, finished, tmp_path):
    out, _ = finished
    line = {"id": "a", "prompt": "How do I bake bread?", "goal": "bake bread", "kind": "benign"}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(line), encoding="utf-8")
    table = pipeline.evaluate(small(out=tmp_path / "own"), [out / "repair"], [str(file)])
    assert [(s["name"], s["role"], s["n"]) for s in table["suites"]] == [("mine", "utility", 1)]
    with pytest.raises(UsageError, match="no suite named nothing"):
        pipeline.evaluate(small(out=tmp_path / "none"), [], ["nothing"])


def test_folders_of_one_name_are_told_apart():
    folders = [Path("a/repair"), Path("b/repair"), Path("c/other")]
    assert pipeline._names(folders) == ["a/repair", "b/repair", "other"]


@pytest.mark.parametrize("stop", ["selection", "evaluation"])
def test_a_killed_job_ends_with_the_same_numbers(small, finished, tmp_path, monkeypatch, stop):
    """Stopped in the middle of a stage's answers, and resumed."""
    whole, tree = finished
    out = tmp_path / "killed"
    if stop == "evaluation":  # what came before is the same run, killed later
        shutil.copytree(whole, out)
        for name in ("rows.jsonl", "answers.jsonl", "report.html", "report.json"):
            (out / name).unlink()
    added = 0
    add = Rows.add

    def stops(self: Rows, *rows: Any) -> None:
        nonlocal added
        add(self, *rows)
        added += 1
        if added == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "add", stops)
        with pytest.raises(KeyboardInterrupt):
            pipeline.repair(small(out=out, resume=stop == "evaluation"))
    assert not (out / "report.json").exists()
    again = pipeline.repair(small(out=out, resume=True))
    assert json.dumps(numbers(again)) == json.dumps(numbers(tree))


def test_another_configuration_is_not_resumed(small, finished):
    out, _ = finished
    with pytest.raises(UsageError, match="config"):
        pipeline.repair(small(out=out, resume=True, seed=3))
    with pytest.raises(UsageError, match="resume"):
        pipeline.repair(small(out=out))
