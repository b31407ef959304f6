"""Runs: rows survive kills, full disks and interrupts; a folder is never reused by accident."""

from __future__ import annotations

import errno
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
from hypothesis import given, settings
from hypothesis import strategies as st

from care.errors import DataError, StorageError, UsageError
from care.runs import progress as progress_module
from care.runs.environment import peak_memory_gib
from care.runs.files import config_digest, storage_errors, write_all, write_whole
from care.runs.progress import Progress, duration
from care.runs.rows import Rows
from care.runs.run import Run
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


@given(texts=st.lists(st.text(max_size=6), min_size=1, max_size=4), cut=st.integers(0, 150))
@settings(max_examples=80, deadline=None)
def test_a_file_cut_anywhere_keeps_every_whole_row(tmp_path_factory, texts, cut):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    rows = Rows(path)
    for number, text in enumerate(texts):
        rows.add({"key": str(number), "text": text})
    rows.close()
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    again = Rows(path)
    assert [row["text"] for row in again.all()] == texts[:whole]
    for number in range(whole, len(texts)):
        again.add({"key": str(number), "text": texts[number]})
    again.close()
    assert path.read_bytes() == data


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


def full_after(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """From here on the disk takes `allowed` more bytes, like a real one: a write may be partial."""
    left, write = [allowed], os.write

    def limited(file: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)


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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = write_whole(tmp_path / "deep/er/report.json", "old")
    with monkeypatch.context() as patch:
        full_after(patch, 2)
        with sentence(StorageError, "No space"):
            write_whole(file, "new content")
    assert file.read_text() == "old"
    assert [p.name for p in file.parent.iterdir()] == ["report.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_the_systems_error_becomes_one_sentence():
    file = os.open("/dev/full", os.O_WRONLY)
    try:
        with sentence(StorageError, "No space left"), storage_errors("write"):
            write_all(file, b"x")
    finally:
        os.close(file)


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


def test_config_digest_ignores_order_only():
    assert config_digest({"a": 1, "b": 2}) == config_digest({"b": 2, "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": "1"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/9"}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path, text):
    Run(tmp_path / "run").close()
    (tmp_path / "run/manifest.json").write_text(text)
    with sentence(DataError, r"manifest\.json"):
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


# --- progress -------------------------------------------------------------------------------------


def test_progress_in_a_log(capsys):
    with Progress("answers", 10, done=4, every=0.0) as progress:
        progress.advance(3, note="vqa")
        progress.advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("answers 7/10 (70%)") and lines[0].endswith("vqa")
    assert re.search(r"/s, .* left", lines[0])
    assert lines[-1].startswith("answers 10/10 (100%)") and len(lines) == 2


def test_progress_rate_leaves_out_what_was_there(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    progress = Progress("answers", 100, done=50)
    assert progress.pace() == ""
    clock[0] = 10.0
    progress.done += 20
    assert progress.rate() == 2.0
    assert progress.pace() == "2.0/s, 15 s left"


def test_durations():
    assert [duration(s) for s in (7.6, 125, 3780)] == ["8 s", "2 min 05 s", "1 h 03 min"]
    assert [duration(s, 1) for s in (7.64, 59.97, 125)] == ["7.6 s", "1 min 00 s", "2 min 05 s"]


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
