"""How requests of lmms-eval are read; none of this needs lmms-eval."""

import importlib
import sys

import pytest

from care.errors import MissingDependencyError, UsageError
from care.interfaces.requests.decoding import Decoding, read_decoding, read_pictures
from kit import tiny

MMBENCH = {
    "until": ["ASSISTANT:"],
    "max_new_tokens": 1024,
    "temperature": 0,
    "top_p": 1.0,
    "num_beams": 1,
    "do_sample": False,
}
MMVET = {**MMBENCH, "until": ["\n\n"], "temperature": 0.2}
"""As lmms-eval hands over the published settings; the blank line is its own."""


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, "care.interfaces.lmms_eval.model", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        importlib.import_module("care.interfaces.lmms_eval.model")
    assert "pip install 'care-vlm[lmms-eval]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_settings_are_greedy():
    assert read_decoding("mmbench", MMBENCH) == Decoding(1024, 0.0, ("ASSISTANT:",))
    assert read_decoding("mmvet", MMVET) == Decoding(1024, 0.0, ())


def test_a_blank_line_stops_where_it_is_asked_to_or_stands_beside_others():
    assert read_decoding("t", MMVET, blank_line_stops=True).until == ("\n\n",)
    assert read_decoding("t", {"until": ["\n\n", "Q:"]}).until == ("\n\n", "Q:")


def test_what_a_task_leaves_open_is_as_in_other_models():
    assert read_decoding("t", {}) == Decoding(1024, 0.0, ())
    assert read_decoding("t", {"until": "Q:"}).until == ("Q:",)


def test_sampling_keeps_its_temperature():
    assert read_decoding("t", {"do_sample": True, "temperature": 0.7}).temperature == 0.7
    assert read_decoding("t", {"do_sample": True}).temperature == 1
    assert read_decoding("t", {"temperature": 0.7}).temperature == 0.7
    assert read_decoding("t", {"do_sample": True, "temperature": 0}).temperature == 0


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"num_beams": 5}, "num_beams=5"),
        ({"do_sample": True, "temperature": 1, "top_p": 0.9}, "top_p=0.9"),
        ({"temperature": 0.5, "top_k": 20}, "top_k=20"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
        ({"visual_cot": True}, "visual_cot=True"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"do_sample": "maybe"}, "do_sample"),
        ({"until": [""]}, "until"),
        ({"until": 3}, "until"),
    ],
)
def test_what_cant_be_honoured_is_named_with_its_task(asked, named):
    with pytest.raises(UsageError, match="'some_task'") as caught:
        read_decoding("some_task", asked)
    assert named in str(caught.value)


def test_nucleus_sampling_doesnt_matter_to_greedy_answers():
    assert read_decoding("t", {"do_sample": False, "top_p": 0.9, "top_k": 5}).temperature == 0


def test_an_answer_ends_before_the_first_of_until():
    decoding = Decoding(until=("Q:", "ASSISTANT:"))
    assert decoding.cut("B ASSISTANT: and Q: more") == "B "
    assert decoding.cut("no end") == "no end"
    assert decoding.stop is not None
    assert decoding.stop("so far Q: and")
    assert not decoding.stop("so far")
    assert Decoding().stop is None


def test_pictures_pass_and_all_else_is_named():
    image = tiny.picture()
    assert read_pictures("r", None) == read_pictures("r", []) == ()
    assert read_pictures("r", image) == (image,)
    assert read_pictures("r", [image, "a/b.JPG"]) == (image, "a/b.JPG")
    for visual, named in [
        ("clip.mp4", "clip.mp4"),
        ({"array": [0.0], "sampling_rate": 16_000}, "video or sound"),
        ([image], "list"),
        (3, "int"),
    ]:
        with pytest.raises(UsageError, match="Request t-1 holds") as caught:
            read_pictures("Request t-1", [visual])
        assert named in str(caught.value)
