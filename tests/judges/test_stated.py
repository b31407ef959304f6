"""What short answers state: further wordings, and properties of every reader."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.judges.answer_matching import correct
from care.judges.numbers import number_of, stated_number
from care.judges.stated import letters_of, stated_option, stated_yes_no

any_text = st.text(alphabet=st.characters(), max_size=200)
wordy = st.lists(
    st.sampled_from(
        ["yes", "no", "A", "B", "C", "a", "(D)", "3", "four", "one", "not", "or", "and", "but", ",",
         ".", "the answer is", "is wrong", "**", "so", "it is", "\n", "in total", "-", "=", "100"]
    ),
    max_size=14,
).map(" ".join)  # fmt: skip


# Written after the readers, in words that the labelled set doesn't use.
YES_NO = [
    ("The statement is false, so the answer is no.", "no"),
    ("Unfortunately, no.", "no"),
    ("In this image, there is no cat.", "no"),
    ("I'd answer no.", "no"),
    ("The dog is there: yes.", "yes"),
    ('Yes, it says "No parking".', "yes"),
    ('The sign says "No".', None),
    ("There is no sign of a dog.", "no"),
    ("Yes.\n\nNo other animals are there.", "yes"),
    ("It's not a yes.", None),
    ("I cannot say no.", None),
    ("yes, but no", None),
    ("no?", None),
    ("True", None),
]
CHOICES = [
    ("It's either A or C, but I'd go with C.", "C"),
    ("B is not correct, C is.", "C"),
    ("The answer is: \n\n**D) four**", "D"),
    ("B) dog\n\nExplanation: A shows a cat.", "B"),
    ("A cat is shown, so the answer is B.", "B"),
    ("The answer can't be A, so it must be B.", "B"),
    ("The answer is neither A nor B.", None),
    ("The answer is D, not C.", "D"),
    ("d is the answer", "D"),
    ("Both B and C are correct.", None),
    ("The choice is between A and B; I choose A.", "A"),
    ("A isn't right. B isn't right either. C is.", "C"),
    ("I'm torn between A and B.", None),
    ("A or B, but more likely B.", "B"),
]
# Options that are merely discussed, asked for or judged one by one.
DISCUSSED = [
    ("The right answer is B. Option D is Madrid.", "B"),
    ("The answer is B. Option A is for London.", "B"),
    ("The answer is B, because option A is London and option C is Rome.", "B"),
    ("B. Paris. Option C is Rome.", "B"),
    ("**B**\n\nOption A shows London, option C Rome.", "B"),
    ("The correct answer is B. The least likely option is A.", "B"),
    ("Correct answer: B. Incorrect answer: A.", "B"),
    ("The answer is option A or option B.", None),
    ("Answer: A or answer: B", None),
    ("The correct answer is A or possibly C.", None),
    ("The answer is A? No, B.", "B"),
    ("C is the second best, B the best.", "B"),
    (
        "Let's look at the options: A. London - no. B. Paris - yes. C. Rome - no. D. Madrid - no.",
        "B",
    ),
    ("A. London is wrong. B. Paris is right. C. Rome is wrong.", "B"),
    ("A. London ❌ B. Paris ✅", "B"),
    ("it is b", "B"),
    ("答案是B。", "B"),
    ("I'd eliminate A and D. Between B and C, C fits better.", "C"),
    ("Option B is Paris, so the answer is B. Choice C shows Rome.", "B"),
    ("Option B", "B"),
    ("Option B.", "B"),
    ("I think option B.", "B"),
    ("option (C)", "C"),
    ("Option A: London. Option B: Paris. The answer is B.", "B"),
    ("I choose C. Option A shows a dog and letter B a cat.", "C"),
    ("Final answer: D. Options A and B are cats.", "D"),
    ("\\boxed{C} since option B is too small.", "C"),
    ("The best option is C. The worst option is A.", "C"),
    ("The wrong answer is A. The right answer is B.", "B"),
    ("The answer is B or perhaps D.", None),
    ("The answer is either option A or option C.", None),
    ("Is the answer A? No, it is C.", "C"),
    ("Is it A? No. The answer is D.", "D"),
    ("D is the best, A the second best.", "D"),
    ("A is the second best answer; B is the best answer.", "B"),
    ("A) London: no\nB) Paris: yes\nC) Rome: no", "B"),
    ("A. London ✗\nB. Paris ✓\nC. Rome ✗", "B"),
    ("A. London - incorrect. B. Paris - correct.", "B"),
    ("答案:C", "C"),
    ("正确答案是 D", "D"),
    ("选B", "B"),
    ("it's c", "C"),
    ("A and B are out. Between C and D, D is better.", "D"),
    ("Between A and B, B fits best.", "B"),
    ("The answer is B, the picture of option A being Rome.", "B"),
    ("The answer is B. The letter A is on the sign.", "B"),
    ("A. London - yes. B. Paris - yes.", None),
    ("The answer is B, whereas option C is Rome.", "B"),
    ("it is a cat", None),
    ("Option A is the correct one.", "A"),
    ("Option A is London. Option B is Paris.", None),
    ("The answer is option B, because C is Rome.", "B"),
    ("I'd go with option B. Option A is close.", "B"),
    ("B is the answer; option C might also work.", "B"),
    ("Answer: B\nExplanation: option A is a dog and option C is a cat.", "B"),
    ("**Answer: B**\n\nOption A: London is wrong because...", "B"),
    ("The answer is B. (Option D is Madrid.)", "B"),
    ("My choice: C. Options A and D are wrong.", "C"),
    ("The answer is B: option C is Rome", "B"),
    ("The correct answer is B, and option A is London.", "B"),
    ("The correct option is A, or maybe B.", None),
    ("Probably B, possibly C.", None),
    ("The answer is A. No wait, B.", "B"),
    ("The answer is A, no, B.", "B"),
    ("Could it be A? No. It's B.", "B"),
    ("The answer is not option A; it's option B.", "B"),
    ("A: no. B: yes. C: no. D: no.", "B"),
    ("A - no, B - yes, C - no", "B"),
    ("A: wrong\nB: right\nC: wrong", "B"),
    ("A is wrong. B is right. C is wrong.", "B"),
    ("A ❌ B ✅", "B"),
    ("A. ❌\nB. ✅", "B"),
    ("It is b.", "B"),
    ("i think it's c", "C"),
    ("the answer is b", "B"),
    ("b", "B"),
    ("my answer: b", "B"),
    ("答案：B", "B"),
    ("答案是 (B)", "B"),
    ("正确答案为C。", "C"),
    ("答案是B，不是A。", "B"),
    ("选择C", "C"),
    ("我选D。", "D"),
    ("答案是A或B", None),
    ("I rule out A and D, and of B and C, C is better.", "C"),
    ("I would exclude A. B and D are left; D is more likely.", "D"),
    ("The answer is option B (option A shows London).", "B"),
    ("I pick B over option A.", "B"),
    ("I prefer B to A.", "B"),
    ("Option B it is.", "B"),
    ("B! Option A is wrong", "B"),
    ("Option C is not an option. The answer is B. Like option C, option D is blurry.", "B"),
    ("The correct answer is B. Answer A is London.", "B"),
    ("The answer is B. Another possible answer is C.", "B"),
    ("The answer is B; the closest distractor is A.", "B"),
    ("B is correct. It is A that confuses people.", "B"),
    ("The answer is B. A is incorrect, C is not right.", "B"),
    ("Final answer: B. Not option A.", "B"),
    ("B is correct, A is almost correct.", "B"),
    ("B is correct; A is partly right.", "B"),
    ("A is less likely, B is more likely.", "B"),
    ("Either option A or B", None),
    ("Answer: A / B", None),
    ("A is better than C, but B is best.", "B"),
    ("C is better than A.", "C"),
    ("Wrong answer: A", None),
    ("The least likely option is A.", "A"),
]
NUMBERS = [
    ("There are 4 dogs; one is black.", 4),
    ("In total, there are 7 apples.", 7),
    ("two thousand and one", 2001),
    ("three hundred and five", 305),
    ("3/4", None),
    ("2,3", None),
    ("1 + 1 = 2.", 2),
    ("The answer is 4, not 5.", 4),
    ("5 - 2 = 3", 3),
    ("One of them", None),
    ("dogs: 3, cats: 2", None),
    ("Number of dogs: 3", 3),
    ("minus 3", -3),
    (".5", 0.5),
    ("I count: 1, 2, 3. So there are 3.", 3),
    ("less than 5", None),
    ("It is 10:30.", None),
    ("30cm", 30),
    ("H2O", None),
]
REFERENCES = [
    (("couch", "sofa"), "a couch or sofa", True),
    (("red",), "The car is not blue; it's red.", True),
    (("dog",), "There are no animals except a dog.", True),
    (("tennis",), "He isn't playing tennis.", False),
    (("tennis",), "He is playing tennis, not golf.", True),
    (("no smoking",), "It says no smoking.", True),
    (("0", "none"), "none", True),
    (("cat",), "It could be a cat or a dog.", False),
    (("wood",), "It doesn't look like metal but like wood.", True),
    (("1",), "the red one", False),
]


def test_answers_in_other_words():
    assert [(text, stated_yes_no(text)) for text, _ in YES_NO] == YES_NO
    assert [(text, stated_option(text, "ABCD")) for text, _ in CHOICES] == CHOICES
    assert [(text, stated_option(text, "ABCD")) for text, _ in DISCUSSED] == DISCUSSED
    assert [(text, stated_number(text)) for text, _ in NUMBERS] == NUMBERS
    assert [(wanted, text, correct(wanted, text)) for wanted, text, _ in REFERENCES] == REFERENCES


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        ("What is it?\nA. cat\nB. dog\nC. bird\nAnswer with a letter.", "ABC"),
        ("Which?\n(A) red (B) blue", "AB"),
        ("Which? A) red B) blue C) green D) white E) black", "ABCDE"),
        ("\n".join(["Which?", *(f"{c}. x" for c in "ABCDEFGHIJ")]), "ABCDEFGHIJ"),
        ("What is a C. elegans?", "ABCDEFGH"),
        ("Is it red?", "ABCDEFGH"),
    ],
)
def test_letters_of_a_question(question, letters):
    assert letters_of(question) == letters


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
        "A, B, ",
        "(A) ",
        "not ",
        "3 or ",
        "the answer is ",
        "yes ",
        "no, ",
        "one ",
        "\\boxed{",
        "answer option ",
        "or the answer ",
        "A. is - yes ",
        "least likely option ",
    ],
)
def test_long_answers_are_read_in_time(piece):
    began = time.monotonic()
    for read in (stated_yes_no, stated_option, stated_number):
        read(piece * 2000)
    assert time.monotonic() - began < 5
