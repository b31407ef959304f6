"""What short answers state: further wordings, and properties of every reader."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.judges.answer_matching import correct
from care.judges.numbers import number_of, stated_number
from care.judges.stated import letters_of, stated_option, stated_yes_no
from kit.texts import any_text, cases

wordy = st.lists(
    st.sampled_from(
        ["yes", "no", "A", "B", "C", "a", "(D)", "3", "four", "one", "not", "or", "and", "but", ",",
         ".", "the answer is", "is wrong", "**", "so", "it is", "\n", "in total", "-", "=", "100"]
    ),
    max_size=14,
).map(" ".join)  # fmt: skip


# The cases were written after the readers, in words that the labelled set doesn't use.
@cases("judges/yes_no")
def test_a_stated_yes_or_no(text, label):
    assert stated_yes_no(text) == label


@cases("judges/option")
def test_a_stated_option(text, label):
    assert stated_option(text, "ABCD") == label


@cases("judges/number")
def test_a_stated_number(text, label):
    assert stated_number(text) == label


@cases("judges/letters")
def test_letters_of_a_question(text, label):
    assert letters_of(text) == label


def test_only_letters_that_the_question_has_count():
    question = "What is it?\nA. cat\nB. dog"
    assert correct(("B", "dog"), "B", question)
    assert stated_option("Vitamin C, so the answer is B", "AB") == "B"
    assert stated_option("C", "AB") is None and stated_option("C") == "C"
    assert correct(("J", "ten"), "The answer is J.", "\n".join(f"{c}. x" for c in "ABCDEFGHIJ"))


@settings(max_examples=300, deadline=None)
@given(any_text | wordy)
def test_readers_never_fail(text):
    assert stated_yes_no(text) in ("yes", "no", None)
    assert stated_option(text) in (*"ABCDEFGH", None)
    value = stated_number(text)
    assert value is None or isinstance(value, float)


@settings(max_examples=300, deadline=None)
@given(wordy)
def test_an_answer_is_right_for_one_side_at_most(text):
    assert not (correct(("yes",), text) and correct(("no",), text))
    assert sum(correct((letter,), text) for letter in "ABCD") <= 1
    assert sum(correct((number,), text) for number in ("1", "3", "4", "100")) <= 1


@given(
    st.integers(-999, 10**9), st.sampled_from(["{}", "The answer is {}.", "{} dogs", "It is {}."])
)
def test_a_number_is_read_as_written(number, form):
    for shown in (str(number), f"{number:,}"):
        assert stated_number(form.format(shown)) == number == number_of(shown)


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_a_discarded_letter_is_not_stated(right, wrong):
    if right == wrong:
        return
    for form in (
        "Option {w} is wrong; the answer is {r}.", "({w}) can't be, so it is ({r}).",
        "Not {w} but {r}.", "It isn't {w}. It is {r}.", "{r}, not {w}.", "{r} rather than {w}",
        "I considered ({w}), but it is incorrect. Final answer: {r}.",
    ):  # fmt: skip
        assert stated_option(form.format(w=wrong, r=right)) == right
    for form in ("{w} or {r}", "Either {w} or {r}.", "{w}, {r}", "The answer is {w} or {r}."):
        assert stated_option(form.format(w=wrong, r=right)) is None


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_a_mention_never_overrides_a_declared_letter(right, other):
    if right == other:
        return
    for declared in (
        "The answer is {}.", "Final answer: {}.", "I choose {}.", "**{}**.", "\\boxed{{{}}}.",
        "Option {} is correct.", "So it is {}.", "{}. Paris.",
    ):  # fmt: skip
        for mention in (
            "Option {} is Rome.", "Choice {} shows a cat, a small one.", "The letter {} is there.",
            "The second best option is {}.", "Wrong answer: {}.", "Is the answer {}? Hardly.",
            "Option ({}): Rome.",
        ):  # fmt: skip
            text = f"{declared.format(right)} {mention.format(other)}"
            assert stated_option(text, "ABCD") == right, text


@pytest.mark.parametrize(
    "piece",
    [
        "A, B, ", "(A) ", "not ", "3 or ", "the answer is ", "yes ", "no, ", "one ", "\\boxed{",
        "answer option ", "or the answer ", "A. is - yes ", "least likely option ",
    ],
)  # fmt: skip
def test_long_answers_are_read_in_time(piece):
    began = time.monotonic()
    for read in (stated_yes_no, stated_option, stated_number):
        read(piece * 2000)
    assert time.monotonic() - began < 5
