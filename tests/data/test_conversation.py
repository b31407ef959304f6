"""Conversations from chat messages: what is kept, and what is refused."""

import pytest

from care.data import Conversation
from care.data.example import Example
from care.errors import DataError, UsageError
from kit.tiny import picture


def text(words):
    return {"type": "text", "text": words}


def image(value):
    return {"type": "image", "image": value}


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [text("What is"), image(picture(0)), text("this?")]},
    {"role": "assistant", "content": "A car."},
    {"role": "user", "content": [image(picture(1)), text("And this?"), text("")]},
]


def test_turns_and_places_of_pictures_are_kept():
    found = Conversation.of(CHAT)
    assert isinstance(found, Example) and len(found.images) == 2
    assert found.prompt == "Be brief.\nWhat is\nthis?\nA car.\nAnd this?"
    assert [turn["role"] for turn in found.messages()] == [turn["role"] for turn in CHAT]
    assert [turn["content"] for turn in found.messages()] == [
        [text("Be brief.")],
        [text("What is"), {"type": "image"}, text("this?")],
        [text("A car.")],
        [{"type": "image"}, text("And this?")],
    ]


def test_a_last_turn_of_the_assistants_is_the_opening():
    begun = Conversation.of([*CHAT, {"role": "assistant", "content": [text("It"), text(" is")]}])
    assert begun.opening == "It is" and begun.messages() == Conversation.of(CHAT).messages()
    assert begun.id != Conversation.of(CHAT).id
    assert begun.text_alone().digest() == Conversation.of(CHAT).text_alone().digest()


def test_the_id_is_made_of_words_and_pictures(tmp_path):
    other = [*CHAT[:3], {"role": "user", "content": [image(picture(2)), text("And this?")]}]
    assert Conversation.of(CHAT).id == Conversation.of(CHAT).id != Conversation.of(other).id
    assert Conversation.of(CHAT).text_alone().id == Conversation.of(other).text_alone().id
    path = tmp_path / "one.png"
    picture(1).save(path)
    read = [*CHAT[:3], {"role": "user", "content": [image(str(path)), text("And this?")]}]
    assert Conversation.of(read).id == Conversation.of(CHAT).id


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "ends with a user's message.*got nothing"),
        ([{"role": "system", "content": "Be brief."}], "got one of role 'system'"),
        ([{"role": "tool", "content": "x"}], "A turn is of system, user, assistant"),
        ([{"content": "x"}], "one is of 'None'"),
        ([{"role": "user", "content": 3}], "a text or a list of parts, got int"),
        ([{"role": "user"}], "got NoneType"),
        ([{"role": "user", "content": ["x"]}], "A part of a message is"),
        (
            [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
            "A part of a message is",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "A part of a message is"),
        ([*CHAT, {"role": "assistant", "content": [image(picture(0))]}], "holds an image"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, words):
    with pytest.raises(UsageError, match=words):
        Conversation.of(messages)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    asked = [{"role": "user", "content": [image(tmp_path / "none.png")]}]
    with pytest.raises(DataError, match=r"image 0 of the request.*none\.png"):
        Conversation.of(asked)
    with pytest.raises(DataError, match="is empty"):
        Conversation.of([{"role": "user", "content": []}])
