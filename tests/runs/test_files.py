"""Files are written whole or not at all, by one writer or several, and on a disk that is full."""

import os
from functools import partial
from pathlib import Path

import pytest

from care.errors import StorageError
from care.runs.files import PART, config_digest, storage_errors, write_all, write_whole
from kit.full_disk import full_after
from kit.refusals import refused

sentence = partial(refused, end=".")


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


def test_config_digest_ignores_order_only():
    assert config_digest({"a": 1, "b": 2}) == config_digest({"b": 2, "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": "1"})


def test_an_interrupted_write_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("care.runs.files.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", "b")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_use_two_names(monkeypatch, tmp_path):
    seen = []
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(self.name), real(self, to)))
    for _ in range(2):
        write_whole(tmp_path / ("n" * 200), "b")
    assert len(set(seen)) == 2 and all(name.endswith(PART) for name in seen)
