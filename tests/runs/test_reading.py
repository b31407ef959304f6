"""What is read of others: valid text, strict JSON, regular files, one cache for all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.data.source import keep_picture
from care.errors import ArtefactError, DataError
from care.runs.files import config_digest, to_json, write_whole
from care.runs.reading import (
    MAX_DEPTH,
    check_regular,
    file_digest,
    parse_json,
    read_file,
    read_text,
    valid,
    valid_text,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Texts of Python, halves of surrogate pairs among them."""


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("half \ud83d", "half \ufffd"),
        ("\ude00 the other half", "\ufffd the other half"),
        ("\ud83d\ude00", "\U0001f600"),  # both halves are the whole
        ("\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        ("plain é 😀", "plain é 😀"),
        ("", ""),
    ],
)
def test_half_a_surrogate_pair_becomes_the_replacement_character(text, right):
    assert valid_text(text) == right


@given(ANY_TEXT)
def test_every_text_can_be_written_and_comes_back_as_valid(text):
    right = valid_text(text)
    assert valid_text(right) == right
    assert right.encode().decode() == right
    assert json.loads(to_json({"text": text})) == {"text": right}
    assert len(config_digest({text: [text]})) == 64
    if not any(0xD800 <= ord(char) < 0xE000 for char in text):
        assert right == text


def test_texts_inside_of_values_and_files_are_mended(tmp_path):
    assert valid({"\ud83d": ["\ud83d", ("\ud83d", 1, None)]}) == {
        "\ufffd": ["\ufffd", ("\ufffd", 1, None)]
    }
    assert write_whole(tmp_path / "a.txt", "a \ud83d").read_text("utf-8") == "a \ufffd"


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper than 100"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        ("9" * 5000, "not a finite number"),
        ("-" + "9" * 400, "not a finite number"),
        ("1e999", "not a finite number"),
        ("NaN", "not a finite number"),
        ("-Infinity", "not a finite number"),
        ("", "isn't valid JSON"),
        ("{} {}", "isn't valid JSON"),
        (b'"\xff"', "isn't valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "isn't valid JSON"),
    ],
)
def test_json_that_cant_be_used_is_one_sentence(text, said):
    with pytest.raises(ArtefactError, match=said) as caught:
        parse_json(text, "the file", ArtefactError, "fetch it again")
    message = str(caught.value)
    assert message.startswith("the file ") and message.endswith("; fetch it again.")
    assert len(message) < 300


def test_json_as_deep_as_may_be_is_read_and_written_again():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert to_json(parse_json(deep, "it")) == deep
    with pytest.raises(DataError, match="deeper"):
        parse_json(f"[{deep}]", "it")
    flat = json.dumps([[number] for number in range(10 * MAX_DEPTH)])
    assert len(parse_json(flat, "it")) == 10 * MAX_DEPTH


def test_what_pandas_and_servers_write_is_let_through_on_request():
    assert parse_json("[NaN, 1e999]", "it", finite=False)[1] == float("inf")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON.filter(lambda value: "Infinity" not in json.dumps(value)))
def test_all_other_json_is_what_the_standard_library_reads(value):
    text = json.dumps(value)
    assert parse_json(text, "it") == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf" + text.encode(), "it") == json.loads(text)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, said in (
        ("pipe", "a named pipe"),
        ("link", "a device"),
        (".", "a folder"),
        ("nothing", "No such file"),
        ("a\0b", "can't be read"),
        ("x" * 300, "can't be read"),
    ):
        for read in (check_regular, read_file, read_text, file_digest):
            with pytest.raises(DataError, match=said):
                read(tmp_path / name, "table")


def test_a_file_is_read_up_to_a_limit_that_is_stated(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_file(path, limit=5) == b"12345"
    assert file_digest(path) == hashlib.sha256(b"12345").hexdigest()
    with pytest.raises(DataError, match="5 bytes, above the limit of 4"):
        read_file(path, limit=4)
    if Path("/proc/self/status").exists():  # it states a size of 0
        with pytest.raises(DataError, match="more than 10 bytes"):
            read_file("/proc/self/status", limit=10)


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "a"
    for content in ("é\n".encode(), b"\xef\xbb\xbf" + "é\n".encode()):
        path.write_bytes(content)
        assert read_text(path) == "é\n"
    for encoding in ("latin-1", "utf-16", "utf-32"):
        path.write_bytes("é\n".encode(encoding))
        with pytest.raises(DataError, match="isn't UTF-8"):
            read_text(path)


# --- several writers ------------------------------------------------------------------------------


def _fill(barrier, failed) -> None:
    for number in range(100):
        barrier.wait()
        try:
            keep_picture(str(number).encode() * 20_000, "png")
        except Exception as error:
            failed.put(repr(error))
            return barrier.abort()


def test_two_processes_fill_one_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CARE_CACHE", str(tmp_path))
    context = multiprocessing.get_context("fork")
    barrier, failed = context.Barrier(2), context.SimpleQueue()
    both = [context.Process(target=_fill, args=(barrier, failed)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert failed.empty(), failed.get()
    kept = list((tmp_path / "suites" / "pictures").iterdir())
    assert len(kept) == 100 and all(path.suffix == ".png" for path in kept)
