"""Runs: rows survive kills, full disks and interrupts; a folder is never reused by accident."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from care.errors import DataError, ModelError, StorageError, UsageError
from care.runs.environment import peak_memory_gib
from care.runs.run import Run
from kit.full_disk import full_after
from kit.refusals import refused

sentence = partial(refused, end=".")


# --- rows -----------------------------------------------------------------------------------------


def test_rows_are_there_after_opening_again(tmp_path):
    rows = [{"key": "a", "response": "é\n\u2028 ☂"}, {"key": "b", "score": 0.5}]
    with Run(tmp_path / "run") as run:
        run.add(*rows)
        assert run.has("a") and not run.has("c")
    with Run(tmp_path / "run", resume=True) as run:
        assert run.rows() == rows
        assert run.get("b") == rows[1]
        run.add({"key": "c"})
    assert [json.loads(line)["key"] for line in (tmp_path / "run/rows.jsonl").open()] == [*"abc"]


def test_a_last_line_of_zeros_is_dropped_but_damage_elsewhere_is_an_error(tmp_path):
    with Run(tmp_path / "run") as run:
        run.add({"key": "a"}, {"key": "b"})
    file = tmp_path / "run/rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0\0\0\n")
    with Run(tmp_path / "run", resume=True) as run:
        assert len(run.rows()) == 2
    assert file.read_bytes() == whole
    file.write_bytes(b"not json\n" + whole)
    with sentence(DataError, r"Line 1 of .*rows\.jsonl"):
        Run(tmp_path / "run", resume=True)


@pytest.mark.parametrize("row", [{}, {"key": ""}, {"key": 3}, {"key": "old"}])
def test_a_row_needs_a_key_of_its_own(tmp_path, row):
    with Run(tmp_path / "run") as run:
        run.add({"key": "old"})
        with pytest.raises(UsageError, match="key of its own"):
            run.add({"key": "new"}, row)
        assert [r["key"] for r in run.rows()] == ["old"]


def test_values_are_plain_or_refused(tmp_path):
    with Run(tmp_path / "run") as run:
        run.add({"key": "a", "n": np.int64(3), "x": np.float32(0.5), "v": np.arange(2)})
        assert run.get("a") == {"key": "a", "n": 3, "x": 0.5, "v": [0, 1]}
        for bad in (float("nan"), np.inf, object()):
            with pytest.raises(UsageError, match="JSON"):
                run.add({"key": "b", "bad": bad})


# --- a disk that is full --------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [0, 1, 30])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, allowed):
    with Run(tmp_path / "run") as run:
        run.add({"key": "a"})
        before = (tmp_path / "run/rows.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            full_after(patch, allowed)
            with sentence(StorageError, "No space left on device"):
                run.add({"key": "b", "text": "x" * 100})
        assert (tmp_path / "run/rows.jsonl").read_bytes() == before
        assert not run.has("b")
        run.add({"key": "b", "text": "x" * 100})  # space was freed: the same run goes on
        assert [row["key"] for row in run.rows()] == ["a", "b"]


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with sentence(UsageError, "folder"):
            Run(tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        Run(tmp_path / "thesis.tex")


def test_a_run_is_reused_only_on_request(tmp_path):
    Run(tmp_path / "run").close()
    with pytest.raises(UsageError, match="resume"):
        Run(tmp_path / "run")
    Run(tmp_path / "run", resume=True).close()


def test_a_folder_that_was_killed_before_its_manifest_can_be_used(tmp_path):
    for name in (".lock", "manifest.json.part", "manifest.json.0f.part"):
        (tmp_path / name).write_text("")
    with Run(tmp_path) as run:
        assert run.rows() == []
        assert not list(tmp_path.glob("*.part"))


def test_another_configuration_is_refused_and_named(tmp_path):
    config = {"model": "a", "rank": (4, 8), "path": Path("x")}
    Run(tmp_path / "run", config=config).close()
    Run(tmp_path / "run", resume=True, config=config).close()
    Run(tmp_path / "run", resume=True).close()
    with sentence(UsageError, "model: 'a' then, 'b' now"):
        Run(tmp_path / "run", resume=True, config=config | {"model": "b"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/9"}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path, text):
    Run(tmp_path / "run").close()
    (tmp_path / "run/manifest.json").write_text(text)
    with sentence(DataError, r"manifest\.json"):
        Run(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"created": "soon"}, "`created` is 'soon'; it must be a time as ISO 8601"),
        ({"stages": [{}]}, r"`stages\[0\].attempts` is missing"),
        ({"pinned": {"model": "m"}}, "`pinned.model` is 'm'; it must be an object"),
        ({"files": {"a.json": 1}}, r"`files\['a.json'\]` is 1; it must be a string"),
    ],
)
def test_a_manifest_of_other_types_is_one_sentence(tmp_path, facts, told):
    with Run(tmp_path / "run") as run:
        run.record(**facts, more="is left alone")
    told = rf"^The manifest .*manifest\.json can't be used: {told}; restore it or start a new run"
    with sentence(DataError, told):
        Run(tmp_path / "run", resume=True)


@pytest.mark.slow
def test_two_processes_cannot_write_one_run(tmp_path):
    pytest.importorskip("fcntl")
    code = textwrap.dedent(f"""
        from care.runs.run import Run
        from care.errors import StorageError
        try:
            Run({str(tmp_path / "run")!r}, resume=True)
        except StorageError as error:
            print(error)
    """)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with Run(tmp_path / "run"):
        told = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
    assert told.stdout.startswith("Another process is writing the run")
    Run(tmp_path / "run", resume=True).close()


def test_a_closed_run_takes_no_rows(tmp_path):
    run = Run(tmp_path / "run")
    run.close()
    run.close()
    with pytest.raises(UsageError, match="closed"):
        run.add({"key": "a"})


# --- stages and the manifest ----------------------------------------------------------------------


def test_stages_add_up_and_remember_how_they_ended(tmp_path):
    path = tmp_path / "run"
    with Run(path) as run:
        with run.stage("fit"), run.stage("solve"):
            pass
        with pytest.raises(KeyboardInterrupt), run.stage("evaluate"):
            raise KeyboardInterrupt
        assert run.stage_done("fit") and not run.stage_done("evaluate")
    with Run(path, resume=True) as run:
        assert run.stage_done("fit") and not run.stage_done("evaluate")
        first = next(s for s in run.stages if s["name"] == "evaluate")["seconds"]
        with run.stage("evaluate"):
            pass
        entry = run.stages[-1]
        assert [s["name"] for s in run.stages] == ["fit", "solve", "evaluate"]
        assert entry["attempts"] == 2 and entry["status"] == "done"
        assert entry["seconds"] >= first
        if peak_memory_gib() is not None:
            assert 0 < entry["peak_memory_gib"] < 1000
    assert json.loads((path / "manifest.json").read_text())["stages"][-1]["status"] == "done"


def test_manifest_says_what_and_where(tmp_path):
    with Run(tmp_path / "run", config={"seed": 3}) as run:
        run.record(suites=[{"name": "vqa", "n": 3}])
        run.write_json("report.json", {"x": 1})
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["schema"] == "care.run/1"
    assert manifest["config"] == {"seed": 3}
    assert manifest["suites"] == [{"name": "vqa", "n": 3}]
    assert {"cpu", "cores", "memory_gib", "amx", "avx512_bf16"} <= manifest["machine"].keys()
    assert {"python", "numpy", "torch", "transformers"} <= manifest["versions"].keys()
    assert json.loads((tmp_path / "run/report.json").read_text()) == {"x": 1}


# --- folders that are deleted or replaced ---------------------------------------------------------


def test_rows_are_not_added_to_a_folder_that_was_deleted(tmp_path):
    with Run(tmp_path / "run") as run:
        run.add({"key": "a"})
        shutil.rmtree(run.path)
        for write in (
            lambda: run.add({"key": "b"}),
            lambda: run.answers.add({"key": "b"}),
            lambda: run.write("table.json", "{}"),
            lambda: run.record(more=1),
            run.check_there,
        ):
            with sentence(StorageError, "deleted or replaced"):
                write()
        with pytest.raises(StorageError), run.stage("s"):
            pass
        assert not run.path.exists() and len(run.results) == 1
    Run(tmp_path / "run").close()


def test_rows_are_not_added_to_a_folder_that_was_replaced(tmp_path):
    with Run(tmp_path / "run") as run:
        run.add({"key": "a"})
        shutil.copytree(run.path, tmp_path / "copy")
        run.path.rename(tmp_path / "old")
        (tmp_path / "copy").rename(run.path)
        with pytest.raises(StorageError, match=r"rows\.jsonl was deleted or replaced"):
            run.add({"key": "b"})
        with pytest.raises(StorageError, match=r"\.lock was deleted or replaced"):
            run.write("table.json", "{}")
    assert (tmp_path / "old/rows.jsonl").read_text() == '{"key": "a"}\n'
    assert not (tmp_path / "run/table.json").exists()


@pytest.mark.parametrize("numbered", [True, False])
def test_a_lock_or_rows_that_are_gone_alone_are_noticed(tmp_path, monkeypatch, numbered):
    """Also on a disk that keeps no numbers of files, which can be used all the same."""
    if not numbered:
        monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    with Run(tmp_path / "run") as run:
        run.add({"key": "a"})
        run.record(more=1)
        (run.path / "rows.jsonl").unlink()
        with pytest.raises(StorageError, match="deleted"):
            run.add({"key": "b"})
        run.answers.add({"key": "a"})
        (run.path / ".lock").unlink()
        with pytest.raises(StorageError, match="deleted"):
            run.record(more=1)


def test_links_in_a_folder_lead_nowhere(tmp_path):
    """A run that comes from somebody else can't have files outside of it written."""
    outside = tmp_path / "outside"
    outside.write_text("")
    with Run(tmp_path / "run") as run:
        (run.path / "table.json.part").symlink_to(outside)
        run.write("table.json", "{}")
        assert (run.path / "table.json").read_text() == "{}"
    for name in ("rows.jsonl", "answers.jsonl", ".lock"):
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(outside)
        with pytest.raises(StorageError, match=re.escape(name)):
            Run(tmp_path / "run", resume=True)
        (tmp_path / "run" / name).unlink()
    assert outside.read_text() == ""


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_that_was_made_for_nothing_is_taken_away(tmp_path: Path, before: bool) -> None:
    """After an error that was foreseen, if nothing was done; one that was there stays."""
    path = tmp_path / "run"
    if before:
        path.mkdir()
    with pytest.raises(ModelError), Run(path), Run(tmp_path / "other") as done:
        done.add({"key": "a"})
        raise ModelError("There is no such model.")
    assert path.exists() is before
    assert [row["key"] for row in Run(tmp_path / "other", resume=True).rows()] == ["a"]
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "third"):
        raise ZeroDivisionError
    assert (tmp_path / "third").exists()
