"""Whether a short answer is right: closed cases and bad input."""

import pytest
from hypothesis import given, settings

from care.data.text import words
from care.errors import DataError, UsageError
from care.judges.answer_matching import correct
from kit.texts import any_text, cases


@cases("judges/answer_matching", "references")
def test_an_answer_is_right_or_wrong(references, text, label):
    assert correct(references, text) is label


def test_references_are_checked():
    with pytest.raises(UsageError, match="non-empty"):
        correct((), "red")
    with pytest.raises(UsageError, match="sequence"):
        correct("red", "red")
    with pytest.raises(DataError, match="blank"):
        correct(("  ",), "red")


@settings(max_examples=100, deadline=None)
@given(any_text)
def test_a_reference_answers_itself(reference):
    if not reference.strip():
        return
    assert correct((reference,), reference)
    if set(words(reference)) - {"a", "an", "the"}:
        assert correct((reference,), f"It is {reference}, maybe.")
        assert not correct((reference,), "")
