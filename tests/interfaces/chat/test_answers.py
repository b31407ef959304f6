"""What the page asks and is told, on a tiny model and without gradio."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from PIL import Image

from care.data.conversation import Conversation
from care.defenses.base import Defense
from care.defenses.monitors.monitor import Monitor
from care.errors import DataError, NotFiniteError, UsageError
from care.interfaces.chat.answers import Answerer, Sides
from care.interfaces.chat.config import ChatConfig
from care.models.responses import REFUSAL
from care.models.vlm import VLM
from kit import repairs, tiny
from kit.chats import ASKED, answerer, asked
from kit.tiny import hooks_of
from kit.watched import ALWAYS, repaired


def edited_everywhere():
    """A repair without monitors, that edits the prompt's last token and the answer's."""
    return repairs.repair(scopes=("decision", "response"))


def alone(vlm, defense, turns, **how):
    how = {"max_new_tokens": 12, **how}
    example = Conversation.made(turns, lambda image, _: image)
    return (defense or Defense()).answer(vlm, [example], **how)[0]


def test_both_sides_are_the_answers_of_the_library(vlm):
    defense = edited_everywhere()
    sides, seen = asked(answerer(vlm, defense), ASKED)
    turns = [("user", [ASKED])]
    bare, under = sides.bare[0].told, sides.repaired[0].told
    assert bare.answer == alone(vlm, None, turns) and under.answer == alone(vlm, defense, turns)
    assert bare.text == bare.answer.text and under.text == under.answer.text != bare.text
    assert not bare.edits and not bare.withdrawn and bare.ended and not bare.failure
    # Bare first, both piece by piece.
    texts = [(each.bare[0].told.text, each.repaired[0].told.text) for each in seen]
    assert texts[0] == ("", "") and len(texts) > 6
    assert all(b == bare.text or not r for b, r in texts)
    assert all(bare.text.startswith(b) and under.text.startswith(r) for b, r in texts)


def test_what_was_edited_is_told_by_site(vlm):
    sides, _ = asked(answerer(vlm, edited_everywhere()), ASKED)
    told = sides.repaired[0].told
    assert [edits.site for edits in told.edits] == sorted(repairs.SITES)
    # The decision, and every token of the answer that was read again to go on.
    passes = told.answer.tokens + (1 if told.answer.ended else 0)
    for edits in told.edits:
        assert edits.scopes == ("decision", "response") and edits.tokens == passes
        assert edits.change > 0
    assert vlm.edit_counts is None


def test_an_answer_that_alarms_is_withdrawn_and_begun_again(vlm):
    defense = repaired(answer=ALWAYS)
    config = {"hold": 0, "max_new_tokens": 20}
    sides, seen = asked(answerer(vlm, defense, **config), ASKED)
    told = sides.repaired[0].told
    assert told.answer.source == "refusal" and told.text == REFUSAL
    [taken] = told.withdrawn
    assert taken.alarm == told.answer.alarms[0] and taken.alarm.monitor == "answer"
    shown = [each.repaired[0].told for each in seen]
    assert any(each.text == taken.shown != "" for each in shown)  # it was on the screen
    place = next(n for n, each in enumerate(shown) if each.withdrawn)
    assert shown[place].text == "" and taken.shown not in "".join(e.text for e in shown[place:])
    assert [edits.site for edits in told.edits] == sorted(repairs.SITES)  # of the second attempt


def test_a_request_that_alarms_is_asked_without_its_picture(vlm, tmp_path):
    tiny.picture(1).save(tmp_path / "one.png")
    whole = repaired(request=ALWAYS)
    defense = replace(whole, monitors=whole.monitors[:1])
    sides, _ = asked(answerer(vlm, defense), ASKED, files=[str(tmp_path / "one.png")])
    bare, told = sides.bare[0].told, sides.repaired[0].told
    assert told.answer.source == "text alone" and not told.edits
    assert told.text == alone(vlm, None, [("user", [ASKED])]).text
    assert bare.answer == alone(vlm, None, [("user", [tiny.picture(1), ASKED])])


def test_each_side_goes_on_from_its_own_answers(vlm):
    defense = edited_everywhere()
    config = answerer(vlm, defense, system="Be short.")
    sides, _ = asked(config, ASKED, "and a house?")
    for thread, own in ((sides.bare, None), (sides.repaired, defense)):
        first, second = (each.told.answer for each in thread)
        turns = [("system", ["Be short."]), ("user", [ASKED])]
        assert first == alone(vlm, own, turns)
        turns += [("assistant", [first.text]), ("user", ["and a house?"])]
        assert second == alone(vlm, own, turns)


def test_a_side_that_failed_is_told_and_no_part_of_what_follows(vlm, monkeypatch, capsys):
    class Broken(Defense):
        name = "broken"
        error: Exception = NotFiniteError("The model computed NaN.")

        def stream(self, vlm, example, *, hold=None, **how):
            yield "To"
            raise self.error

    defense = Broken()
    config = answerer(vlm, defense)
    sides, _ = asked(config, ASKED)
    assert sides.repaired[0].told.failure == "The model computed NaN."
    assert sides.repaired[0].told.text == "" and sides.bare[0].told.answer is not None
    defense.error = RuntimeError("out of something")
    sides, _ = asked(config, "and a house?", sides=sides)
    assert len(sides.bare) == len(sides.repaired) == 1
    assert "terminal" in sides.repaired[0].told.failure
    assert "out of something" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "files", "limits", "words"),
    [
        ("", [], {}, "is empty"),
        (" \n", [], {}, "is empty"),
        ("x" * 33, [], {"max_prompt_tokens": 1}, "33 characters, more than"),
        (ASKED, [], {"max_prompt_tokens": 3}, "tokens, more than"),
        (ASKED, ["good.png", "good.png"], {"max_images": 1}, "2 pictures, more than 1"),
        (ASKED, ["good.png"], {"max_pixels": 1199}, "40×30 pixels, more than 1,199"),
        (ASKED, ["good.png", "good.png"], {"max_pixels": 2399}, "40×30 pixels, more than 1,199"),
        (ASKED, ["good.png"], {"max_image_bytes": 9}, "good.png"),
        (ASKED, ["words.png"], {}, "words.png can't be read as PNG"),
        (ASKED, ["old.png"], {}, "old.png can't be read as PNG"),  # a TIFF, whatever its name
        (ASKED, ["none.png"], {}, "none.png"),
        (ASKED, ["."], {}, "a folder"),
    ],
)
def test_what_cant_be_read_is_one_sentence_before_the_model_runs(
    vlm, tmp_path, text, files, limits, words
):
    tiny.picture(0).save(tmp_path / "good.png")
    (tmp_path / "words.png").write_text("no picture")
    tiny.picture(0).save(tmp_path / "old.png", "TIFF")
    config = answerer(vlm, edited_everywhere(), limits)
    with pytest.raises((DataError, UsageError)) as told:
        list(config.both(Sides(), text, [str(tmp_path / file) for file in files]))
    assert words in str(told.value) and "\n" not in str(told.value)


def test_half_a_character_is_answered(vlm):
    sides, _ = asked(answerer(vlm, edited_everywhere()), "a \ud800 car")
    assert sides.bare[0].text == "a � car" and sides.bare[0].told.answer is not None


def test_who_leaves_frees_the_model_and_takes_the_edits_off(vlm):
    config, hooks = answerer(vlm, edited_everywhere(), max_new_tokens=60), hooks_of(vlm)
    stream = config.both(Sides(), ASKED)
    while not next(stream).repaired[0].told.text:
        pass
    assert hooks_of(vlm) > hooks
    stream.close()
    assert hooks_of(vlm) == hooks and vlm.edit_counts is None
    assert asked(config, ASKED)[0].repaired[0].told.answer is not None


def test_two_requests_at_once_are_answered_one_after_the_other(vlm):
    config = answerer(vlm, edited_everywhere())
    known, _ = asked(config, ASKED)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(asked(config, ASKED)[0])) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for sides in found:
        assert sides.bare[0].told == known.bare[0].told
        assert sides.repaired[0].told == known.repaired[0].told


def test_a_stored_repair_is_loaded_with_its_model(monkeypatch, tmp_path):
    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": tiny.tiny_vlm()))
    watched = replace(repairs.repair(), channels=(), monitors=(Monitor("answer", -1e9),))
    watched.save(tmp_path / "repair")
    config = Answerer.load(ChatConfig(repair=str(tmp_path / "repair"), max_new_tokens=4))
    sides, _ = asked(config, ASKED)
    assert sides.repaired[0].told.text == REFUSAL


def test_a_picture_is_shown_small(vlm, tmp_path):
    Image.new("RGB", (1000, 10), "red").save(tmp_path / "wide.png")
    config = answerer(vlm, edited_everywhere())
    _, [picture] = config.read("", [str(tmp_path / "wide.png")])
    assert picture.image.size == (1000, 10) and picture.thumbnail is picture.thumbnail
    assert len(picture.thumbnail) < 1000 and picture.thumbnail.startswith("data:image/png;base64,")
