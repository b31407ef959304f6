"""Whether a short answer is right: closed cases and bad input."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.data.text import words
from care.errors import DataError, UsageError
from care.judges.answer_matching import correct

# Surrogates too: a broken tokenizer can produce them.
any_text = st.text(alphabet=st.characters(), max_size=300)

CORRECT = [
    (("red",), "The circle is red."),
    (("red",), "RED"),
    (("3",), "There are three circles."),
    (("three",), "3"),
    (("3",), "٣"),
    (("21",), "There are twenty-one stars."),
    (("21",), "twenty one"),
    (("20",), "twenty"),
    (("13",), "thirteen"),
    (("1000",), "1,000"),
    (("7",), "007"),
    (("car",), "Two cars."),
    (("cars",), "A car."),
    (("car",), "The car's door."),
    (("a loaf of bread",), "This is the loaf of bread."),
    (("loaf",), "Two loaves."),
    (("box",), "boxes"),
    (("berry",), "Berries."),
    (("bus",), "Buses"),
    (("glass",), "glasses"),
    (("blue", "navy"), "It is navy."),
    (("a",), "A"),
    (("+",), "The sign is +."),
    (("fire engine",), "A **fire engine**"),
    (("A",), "A"),
    (("A",), "A."),
    (("A",), "**A**"),
    (("A", "cat"), "A. cat"),
    (("A",), "(A) a cat"),
    (("A",), "The answer is A."),
    (("A",), "The correct option is: (A)"),
    (("B",), "B because it barks"),
    (("B",), "It must be B, the dog."),
    (("A", "cat"), "A cat sits there."),
    (("A", "cat"), "It is the cat."),
    (("x=-1<AND>x=-5",), "x=-5 or x=-1"),
    (("sponge<AND>carrot",), "Carrot, and sponge."),
]
WRONG = [
    (("red",), "It is bored."),
    (("car",), "A carpet."),
    (("car",), ""),
    (("3",), "13"),
    (("3",), "thirty"),
    (("20",), "twenty-one"),
    (("loaf of bread",), "bread, a loaf"),
    (("blue",), "The circle is red."),
    (("+",), "minus"),
    (("2",), "1,002"),
    (("A", "cat"), "B. black cat"),
    (("A", "cat"), "The answer is B, a cat."),
    (("B",), "A dog sits there."),
    (("A",), "A dog sits there."),
    (("B", "dog"), "A"),
    (("A",), "Either A or B."),
    (("sponge<AND>carrot",), "Only carrot."),
]


DENIED_OR_ASKED = [
    (("car",), "The car isn't visible.", False),
    (("dog",), "A dog is not present.", False),
    (("dog",), "A dog? No.", False),
    (("yellow",), "Yellow? No, it's green.", False),
    (("red",), "Red is not the colour; it's blue.", False),
    (("green",), "Yellow? No, it's green.", True),
    (("blue",), "Red is not the colour; it's blue.", True),
    (("dog",), "Dogs aren't there.", False),
    (("dog",), "The dog cannot be seen.", False),
    (("dog",), "A dog? Yes.", True),
    (("dog",), "A dog, not a cat.", True),
    (("dog",), "The dog is not black but brown.", True),
    (("dog",), "The dog isn't alone.", True),
    (("dog",), "It is a dog that isn't moving.", True),
    (("dog",), "The dog is absent.", False),
    (("dog",), "The dog is missing.", False),
    (("red",), "Is it red? No.", False),
    (("red",), "Is it red? Yes, it is.", True),
    (("red",), "Is it red? I don't think so.", False),
    (("cat",), "A dog is not here, a cat is.", True),
    (("red",), "Red is wrong.", False),
    (("red",), "Red isn't right. It's green.", False),
    (("red",), "Red isn't the answer.", False),
    (("dog",), "No dogs. A dog is not there.", False),
    (("dog",), "The dog was nowhere to be seen.", False),
    (("dog",), "The dog does not appear in the image.", False),
    (("dog",), "A dog can't be seen.", False),
    (("dog",), "A dog, no doubt.", True),
    (("man",), "The man is not wearing a hat.", True),
    (("red",), "Red is not only the colour but the theme.", True),
    (("red",), "Red, isn't it?", True),
    (("tennis",), "Tennis is not what he plays.", False),
    (("dog",), "A dog isn't in the picture.", False),
    (("dog",), "The dog isn't in the house.", True),
]


@pytest.mark.parametrize(("references", "response", "right"), DENIED_OR_ASKED)
def test_what_is_denied_afterwards_or_asked_is_not_stated(references, response, right):
    assert correct(references, response) is right


COUNTED_OR_SAID = [
    (("no",), "No one is in the picture.", True),
    (("yes",), "It is clear that yes, there's a dog.", True),
    (("no",), "Nobody is there.", True),
    (("no",), "Nothing is there.", True),
    (("no",), "No one knows.", False),
    (("3",), "Let me count: 1, 2, 3. There are 3.", True),
    (("3",), "There are 3 dogs, 2 of them brown.", True),
    (("3",), "A total of 3 dogs can be seen, 2 of them brown.", True),
    (("3 cm",), "3cm", True),
    (("3cm",), "3 cm", True),
    (("3",), "3 dogs (2 of them brown)", True),
    (("5",), "There are 5 people, 3 of whom are women.", True),
    (("4",), "Counting: 1, 2, 3, 4. I see 4 cats.", True),
    (("4",), "One, two, three, four.", True),
    (("4",), "1, 2, 3, 4", True),
    (("3",), "1, 2, 3. There are 4.", False),
    (("4",), "1, 2, 3. There are 4.", True),
    (("2",), "There are 3 dogs, 2 of them brown.", False),
    (("3",), "There are 3 dogs and 2 cats.", False),
    (("5",), "A total of five birds, two in the tree.", True),
    (("3",), "I see 3 dogs, one of which is black.", True),
    (("3",), "There are 3 dogs, including 2 brown ones.", True),
    (("2.5 km",), "It is 2.5km long.", True),
    (("2.5km",), "2.5 km", True),
    (("10%",), "10 %", True),
    (("5 kg",), "5kg.", True),
    (("3 cm",), "3 mm", False),
    (("3cm",), "13 cm", False),
    (("3",), "Dogs: 1, 2, 3, so 3.", True),
    (("5 cm",), "2.5 cm", False),
    (("5",), "5 dogs, of which 2 are brown", True),
    (("7",), "7 birds (3 are white)", True),
    (("3",), "Shapes 1, 2, and 3 are red.", False),
    (("3",), "3 dogs, 2 cats", False),
    (("no",), "Nobody is sitting there.", True),
    (("no",), "Nothing is wrong.", False),
    (("no",), "It is clear that no, there isn't.", True),
]


@pytest.mark.parametrize(("references", "response", "right"), COUNTED_OR_SAID)
def test_parts_counts_units_and_nobody(references, response, right):
    assert correct(references, response) is right


@pytest.mark.parametrize(("references", "response"), CORRECT)
def test_correct(references, response):
    assert correct(references, response)


@pytest.mark.parametrize(("references", "response"), WRONG)
def test_wrong(references, response):
    assert not correct(references, response)


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
