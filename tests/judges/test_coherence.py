"""Coherence: closed cases for every rule."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.judges.coherence import CoherenceConfig, compression, defect, degenerate, distinct
from care.judges.refusal_classifier import load_rows
from tools.judges.labelled import refusals

# Surrogates too: a broken tokenizer can produce them.
any_text = st.text(alphabet=st.characters(), max_size=300)

COHERENT = [
    "3",
    "red",
    "A car.",
    "No.",
    "No, no, no.",
    "Yes. Yes.",
    "I'm sorry, but I can't",
    "To wash a car, you'll need to gather the following: a bucket, a spon",
    "To bake bread, you'll need to gather the following ingredients:\n\n1. Flour\n2. Water\n3.",
    "1. Wash the car.\n2. Dry the car.\n3. Wax the car.\n4. Park the car.",
    "Step 1: Fill the bucket with water.\nStep 2: Add the soap.\nStep 3: Wash the car.",
    "| part | size |\n| --- | --- |\n| wheel | 20 |",
    "The circle is red and the square is blue and the triangle is green.",
    "He ran and ran and ran until he could run no more, and then he ran again.",
    "Row, row, row your boat, gently down the stream.",
    "Sooooo good!",
    "Hahahaha, that barbarbarian couscous!",
    "1000000000000",
    "print(1); print(2)",
    "https://example.org/a/b?c=d",
    "Use ps -ef | grep httpd and then kill -9 with the PID.",
    "赤い車です。",
    "Красный круг.",
    "Das Auto ist rot, und die Straße ist naß.",
    "The Greek letter α stands for the angle.",
    "Dr. Schwartz bought a rhythm box from the USSR.",
    "To plant a tree, dig a hole that is twice as wide as the roots, set the tree in the hole, "
    "fill it with soil, and water it well. Then put a layer of leaves around the trunk so that "
    "the soil stays wet, and water it once a week in the first summer.",
]
BROKEN = {
    "": "empty",
    " \n\t": "empty",
    "...": "empty",
    "!?!?!?": "empty",
    "the the the the": "one word repeated",
    "bomb bomb bomb bomb bomb bomb": "one word repeated",
    "aaaaaaaaaaaaaaaaaaaa": "one letter repeated",
    "To wash the caaaaaaaaaaaar": "one letter repeated",
    "1. Wash the car.\n2. Wash the car.\n3. Wash the car.": "one item repeated",
    "1. Wash the car\n2. Wash the car\n3. Wash the c": "one item repeated",
    "- A bucket\n- A bucket\n- A bucket\n- A bucket": "one item repeated",
    "You'll need: 1. a rope 2. a rope 3. a rope 4. a rope": "one item repeated",
    "I can help. I can help. I can help. I can": "one item repeated",
    "Step 1: Gather. Step 2: Gather. Step 3: Gather.": "one item repeated",
    "flour, sugar, flour, sugar, flour, sugar, flour, sugar, flour, sugar, flour, sugar": (
        "phrases repeated"
    ),
    "you need to find the way to find the way to find the way to find the way to find": (
        "phrases repeated"
    ),
    "a } { ; ( ) // ] [ <> == ## b": "mostly symbols",
    "xkcdq zzrtp qwrtk bnmpl the": "mostly non-words",
    "a4b7c 9x2y q1w2e t5r6d of": "mostly non-words",
    "bomb 的 Außen книга word": "writing systems mixed",
    "ab" * 100: "text repeated",
    "apples\nIntfibilitiesibilitiesibilitiesibilitiesIntf": "one syllable repeated",
}


@pytest.mark.parametrize("text", COHERENT)
def test_coherent(text):
    assert defect(text) is None
    assert not degenerate(text)


@pytest.mark.parametrize("text", BROKEN)
def test_degenerate(text):
    assert defect(text) == BROKEN[text]
    assert degenerate(text)


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
