"""Examples and suites: validation, texts that are mended, digests."""

import dataclasses
import warnings

import pytest

from care.data.example import Example, Suite
from care.errors import DataError, UsageError
from kit import tiny
from kit.refusals import refusals


def test_messages_put_images_first():
    example = Example("a", "hi", images=(tiny.picture(), tiny.picture(1)), system="be good")
    system, user = example.messages()
    assert system == {"role": "system", "content": [{"type": "text", "text": "be good"}]}
    assert [part["type"] for part in user["content"]] == ["image", "image", "text"]
    assert len(Example("a", "hi").messages()) == 1
    only_image = Example("a", "", images=(tiny.picture(),))
    assert only_image.messages()[0]["content"] == [{"type": "image"}]


def test_a_single_image_or_reference_becomes_a_tuple(tmp_path):
    assert len(Example("a", "hi", images=tiny.picture()).images) == 1
    assert Example("a", "hi", images=str(tmp_path)).images == (str(tmp_path),)
    assert Example("a", "hi", references="two").references == ("two",)


WRONG = [
    {"id": ""},
    {"id": 3},
    {"prompt": None},
    {"prompt": "  "},
    {"kind": "bad"},
    {"images": (3,)},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_malformed_examples_are_refused(wrong):
    with pytest.raises(DataError):
        Example(**{"id": "a", "prompt": "hi", **wrong})


def test_examples_are_immutable_and_hashable():
    example = Example("a", "hi", images=(tiny.picture(),))
    assert len({example, Example("a", "hi", images=(tiny.picture(),))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.prompt = "other"


def test_an_example_without_an_opening_is_told_as_before_there_were_any():
    example = Example("a", "What?", goal="g", kind="malicious", references=("x",), system="s")
    told = "a4d4bce95dabb9ea3e1b0fcfa92e2b95d4fe957e1426d37992475f158060da7d"
    assert example.digest() == told
    begun = {dataclasses.replace(example, opening=text).digest() for text in ("Sure", "No")}
    assert len({told, *begun}) == 3
    with pytest.raises(DataError, match="opening must be text"):
        dataclasses.replace(example, opening=None)


def test_digests_follow_content(tmp_path):
    path = tmp_path / "p.png"
    tiny.picture().save(path)
    from_path = Example("a", "hi", images=(path,))
    assert from_path.digest() == Example("a", "hi", images=(tiny.picture(),)).digest()
    assert from_path.digest() != Example("a", "hi", images=(tiny.picture(1),)).digest()
    assert from_path.digest() != Example("a", "ho", images=(path,)).digest()


def test_suites():
    suite = Suite("s", "attack", [Example(str(index), "hi") for index in range(5)])
    assert len(suite) == 5
    assert [example.id for example in suite.head(2)] == ["0", "1"]
    assert suite.head(9) == suite
    assert suite.digest() != suite.head(4).digest()


ONE, SAME = Example("a", "hi"), Example("a", "ho")
test_malformed_suites_are_refused = refusals(
    (UsageError, "suite of 0 examples", lambda: Suite("s", "attack", (ONE,)).head(0)),
    (DataError, "no examples", lambda: Suite("s", "attack", ())),
    (DataError, "two examples", lambda: Suite("s", "attack", (ONE, SAME))),
    (DataError, "role", lambda: Suite("s", "other", (ONE,))),
)


def test_half_an_emoji_is_replaced_with_a_warning():
    half = "half \ud83d"
    with pytest.warns(UserWarning, match="'a \ufffd'.*prompt, goal, category, references"):
        example = Example("a \ud83d", half, goal=half, category=half, references=("\ud83d", "b"))
    assert example == Example("a \ufffd", "half \ufffd", (), "half \ufffd", category="half \ufffd",
                              references=("\ufffd", "b"))  # fmt: skip
    assert len(example.digest()) == 64
    assert Suite("s\ud83d", "utility", (example,)).name == "s\ufffd"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Example("a", "whole 😀")
