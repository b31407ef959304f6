"""Zip archives: unpacked whole or not at all, and never out of their folder."""

import zipfile

import pytest

from care.data import archives
from care.data.archives import unpacked
from care.errors import DataError


def made(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("damage", ["no archive", "cut", "a changed byte"])
def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(damage, tmp_path):
    path = made(tmp_path / "a.zip", **{"mm-vet/mm-vet.json": "{}" * 500})
    whole = path.read_bytes()
    spoilt = {
        "no archive": b"nothing",
        "cut": whole[: len(whole) // 2],
        "a changed byte": whole[:200] + b"!" + whole[201:],
    }
    path.write_bytes(spoilt[damage])
    with pytest.raises(DataError, match="isn't a whole zip archive"):
        unpacked(path, tmp_path / "cache" / "a")
    assert list((tmp_path / "cache").iterdir()) == []


def test_one_that_would_fill_the_disk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_UNPACKED", 100)
    path = made(tmp_path / "a.zip", a="x" * 60, b="x" * 60)
    with pytest.raises(DataError, match="holds 120 bytes, above the limit of 100"):
        unpacked(path, tmp_path / "cache" / "a")
    assert list((tmp_path / "cache").iterdir()) == []


def test_half_of_one_from_a_kill_is_unpacked_again_and_a_whole_one_is_not(tmp_path):
    path = made(tmp_path / "a.zip", a="new", b="new")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").write_text("half")
    target = unpacked(path, tmp_path / "target")
    assert {file.name: file.read_text() for file in target.iterdir()} == {
        "a": "new",
        "b": "new",
        ".done": "",
    }
    path.unlink()
    assert unpacked(path, target) == target


def test_no_member_leads_out_of_the_folder(tmp_path):
    path = made(tmp_path / "a.zip", **{"../../out": "x", "in": "y"})
    target = unpacked(path, tmp_path / "cache" / "a")
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache" / "out").exists()
    assert (target / "in").read_text() == "y" and (target / "out").read_text() == "x"
