"""Coherence: closed cases for every rule."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.judges.coherence import CoherenceConfig, compression, defect, degenerate, distinct
from care.judges.refusal_classifier import load_rows
from kit.texts import any_text, cases
from tools.judges.labelled import refusals


@cases("judges/coherence")
def test_the_defect_of_a_text(text, label):
    assert defect(text) == label
    assert degenerate(text) is (label is not None)


def test_hand_written_responses_are_coherent():
    labelled = [r for r in refusals() if r["source"] == "written"]
    rows = load_rows("refusal_train.jsonl") + labelled
    assert [row["text"] for row in rows if degenerate(row["text"])] == []


def test_reading_one_long_word_is_fast():
    start = time.process_time()
    for text in ("abcdefghijklm" * 4_000, "abcabcabd" * 5_000):
        degenerate(text)
    assert time.process_time() - start < 2.0


def test_distinct_and_compression():
    assert distinct(list("abcd"), 3) == 1.0
    assert distinct(list("aaaaa"), 3) == pytest.approx(1 / 3)
    assert distinct(["a"], 3) == 1.0
    assert compression("ab" * 500) < 0.1
    assert compression("short", shortest=10) == 1.0
    assert compression("") == 1.0


def test_coherence_limits_are_used():
    strict = CoherenceConfig(max_word_run=1)
    assert degenerate("no no", strict)
    assert not degenerate("no no")


@settings(max_examples=50, deadline=None)
@given(any_text, st.integers(4, 12))
def test_repeated_lines_are_degenerate(text, times):
    line = " ".join(text.split())
    assert degenerate("\n".join([line] * times))
