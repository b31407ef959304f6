"""An answer while it is made: equal to the whole one, and left cleanly at any token."""

import threading
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from care.errors import DataError, NotFiniteError, UsageError
from care.models.alarms import Withdrawn
from care.models.responses import Answer
from care.models.streaming import Showing, Spoken, pieces, spoken
from care.models.vlm import VLM
from kit import tiny

ASKED = replace(tiny.mixed_examples(2)[1], opening="Sure, here is")
HOW = [{"max_new_tokens": 20}, {"max_new_tokens": 20, "temperature": 1.0, "seed": 5}]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("how", HOW, ids=["greedy", "drawn"])
def test_what_is_spoken_grows_to_the_answer(family, how):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    *said, answer = spoken(vlm, ASKED, **how)
    assert answer == vlm.answers([ASKED], **how)[0]
    opening = len(vlm.response_ids(ASKED.opening))
    assert [each.tokens for each in said] == list(range(opening + 1, answer.tokens + 1))
    assert all(isinstance(each, Spoken) for each in said) and said[-1].text == answer.text
    assert all(later.text.startswith(one.text) for one, later in pairwise(said))


@pytest.mark.parametrize("hold", [None, 0, 9, 100])
def test_pieces_are_the_answer_and_the_first_tokens_are_held_back(vlm, hold):
    how = HOW[0]
    *parts, answer = pieces(vlm, ASKED, hold, **how)
    assert answer == vlm.answers([ASKED], **how)[0] and "".join(parts) == answer.text
    said = {each.tokens: each.text for each in spoken(vlm, ASKED, **how)}
    first = min(max(hold or 0, min(said)), max(said))
    assert parts[0] == said[first].rstrip("\ufffd") and (len(parts) == 1) == (hold == 100)


@pytest.mark.parametrize("hold", [-1, 1.5, True, "2"])
def test_what_is_no_number_of_tokens_is_refused(vlm, hold):
    with pytest.raises(UsageError, match="hold back must be 0 or more, or None"):
        next(pieces(vlm, ASKED, hold))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("interrupted", [False, True], ids=["closed", "Ctrl-C"])
def test_who_stops_listening_stops_the_model(family, interrupted):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    whole = vlm.answers([ASKED], **HOW[0])
    passes = []
    handle = vlm.model.register_forward_hook(lambda *_: passes.append(1))
    so_far = spoken(vlm, ASKED, **HOW[0])
    next(so_far), next(so_far)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            so_far.throw(KeyboardInterrupt)
    else:
        so_far.close()
    handle.remove()
    assert len(passes) == 2
    assert not [t for t in threading.enumerate() if t.name == "care answer"]
    assert vlm.answers([ASKED], **HOW[0]) == whole  # nothing of it is left on the model


def test_the_model_can_be_used_between_two_tokens(vlm):
    with closing(spoken(vlm, ASKED, **HOW[0])) as so_far:
        next(so_far)
        other = vlm.answers([replace(ASKED, opening="")], max_new_tokens=4)
        rest = list(so_far)
    assert rest[-1] == vlm.answers([ASKED], **HOW[0])[0]
    assert other == vlm.answers([replace(ASKED, opening="")], max_new_tokens=4)


def test_errors_are_those_of_an_answer(vlm):
    with pytest.raises(DataError, match=r"picture\.png"):
        list(spoken(vlm, replace(ASKED, images=("picture.png",))))
    broken = tiny.tiny_vlm()
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        list(pieces(broken, ASKED))


# -- showing ---------------------------------------------------------------------------------------


def shown(*texts):
    showing, *so_far = Showing(), *texts[:-1]
    found = [part for text in so_far for part in showing.more(text)]
    return [*found, *showing.rest(texts[-1])]


def test_only_what_is_new_is_shown():
    assert shown("a", "a b", "a b", "a b c") == ["a", " b", " c"]
    assert shown("a", "a") == ["a"] and shown("whole") == ["whole"] and shown("") == []


def test_half_a_character_waits_for_its_other_half():
    assert shown("w\ufffd", "w\ufffd\ufffd", "wö", "wö.") == ["w", "ö", "."]


def test_a_beginning_that_is_written_otherwise_in_the_end_is_withdrawn():
    assert shown("do n", "don't", "don't do") == ["do n", Withdrawn("do n"), "don't do"]


def test_an_answer_of_nothing_has_no_piece(monkeypatch):
    vlm = tiny.vlm_saying([""])
    assert list(pieces(vlm, ASKED)) == [Answer("", 1, 1, True)]
