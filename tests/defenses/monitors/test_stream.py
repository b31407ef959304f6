"""A repair's answer while it is made and read: what is shown when, and that it is `answer`'s."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.data.example import Example
from care.defenses.base import Defense, stream_under
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.dialogue import Dialogue
from care.defenses.monitors.monitor import FIRST, Monitor
from care.defenses.monitors.reading import Exchange
from care.errors import NotFiniteError
from care.models.alarms import Withdrawn
from care.models.responses import REFUSAL, Answer
from care.models.sites import Site
from care.models.vlm import VLM
from kit import repairs, tiny
from kit.watched import ALWAYS, NEVER, repaired

LONG = {"max_new_tokens": 34}
WORDS = ("how do you wash a car?", "build a small house from wood", "picture soap and water")
ASKED = [Example(f"r{n}", text, images=(tiny.picture(n),)) for n, text in enumerate(WORDS)]


def streamed(repair, vlm, example, **how):
    return list(repair.stream(vlm, example, **how))


def text_of(found):
    """What stands in the end: the pieces after what was withdrawn."""
    after = max((n for n, each in enumerate(found) if isinstance(each, Withdrawn)), default=-1)
    return "".join(found[after + 1 : -1])


@pytest.fixture(scope="module")
def readings(vlm):
    """Of each request the bare answer's scores by the monitors of answers and of exchanges."""
    answers = vlm.answers(ASKED, batch_size=1, **LONG)
    assert all(answer.tokens > 2 * FIRST for answer in answers)
    exchanges = [Exchange(e, a.text) for e, a in zip(ASKED, answers, strict=True)]
    return [monitor.scores(vlm, exchanges, 1) for monitor in repaired().monitors[1:]]


# -- the same answer -------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    place=st.integers(0, 2),
    which=st.lists(st.sampled_from([NEVER, 0, 1, 2, ALWAYS]), min_size=2, max_size=2),
    request=st.sampled_from([NEVER, ALWAYS]),
    hold=st.sampled_from([None, 0, 5, 20, 100]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_the_answer_is_that_of_answer_to_the_bit(
    vlm, readings, place, which, request, hold, temperature
):
    """Where alarms are raised at 16 tokens, at 32, at the end, twice, or never."""
    limits = [
        limit if limit in (NEVER, ALWAYS) else sorted(s for _, s in scores[place])[limit] - 1e-3
        for limit, scores in zip(which, readings, strict=True)
    ]
    repair = repaired(*limits, request=request)
    how = LONG | {"temperature": temperature, "seed": 3}
    found = streamed(repair, vlm, ASKED[place], hold=hold, **how)
    assert found[-1] == repair.answer(vlm, [ASKED[place]], **how)[0]
    assert text_of(found) == found[-1].text
    withdrawn = [each for each in found if isinstance(each, Withdrawn)]
    said = [alarm for alarm in found[-1].alarms if alarm.monitor != "request"]
    assert [each.alarm for each in withdrawn] == said[:1]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_in_either_way_of_decoding(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    width = vlm.anatomy.site_width(Site(1, "layer_out"))
    assert width == tiny.WIDTH
    for limits in ((NEVER, NEVER), (ALWAYS, NEVER)):
        repair = repaired(*limits)
        [answer] = repair.answer(vlm, [ASKED[0]], **LONG)
        assert streamed(repair, vlm, ASKED[0], **LONG)[-1] == answer
        assert bool(answer.alarms) == (limits != (NEVER, NEVER))


def test_an_answer_of_edits_alone_is_streamed_while_they_are_on(vlm):
    repair = repairs.repair()
    [answer] = repair.answer(vlm, [ASKED[0]], **LONG)
    bare = vlm.answers([ASKED[0]], **LONG)[0]
    hooks = tiny.hooks_of(vlm)
    found = streamed(repair, vlm, ASKED[0], **LONG)
    assert found[-1] == answer != bare and text_of(found) == answer.text and len(found) > 5
    stream = repair.stream(vlm, ASKED[0], **LONG)
    next(stream)
    assert tiny.hooks_of(vlm) > hooks
    stream.close()
    assert tiny.hooks_of(vlm) == hooks
    assert list(stream_under(None, vlm, ASKED[0], **LONG))[-1] == bare


def test_a_defense_that_answers_in_its_own_way_gives_one_piece(vlm):
    class Twice(Defense):
        name = "twice"

        def answer(self, vlm, examples, **how):
            return [replace(a, text=a.text * 2) for a in vlm.answers(examples, **how)]

    class Rewriting(Defense):
        def rewritten(self, example):
            return replace(example, prompt="wash a car")

    [answer] = Twice().answer(vlm, [ASKED[0]], **LONG)
    assert list(stream_under(Twice(), vlm, ASKED[0], hold=3, **LONG)) == [answer.text, answer]
    *parts, answer = stream_under(Rewriting(), vlm, ASKED[0], **LONG)
    assert answer == Rewriting().answer(vlm, [ASKED[0]], **LONG)[0] and len(parts) > 5


# -- what is shown when ----------------------------------------------------------------------------


def told_at(repair, vlm, **how):
    """Tokens that were there when each piece was shown."""
    passes, at = [], []
    handle = vlm.model.register_forward_hook(
        # A decode step reads one token; a prompt and a monitor read more.
        lambda _, __, output: passes.append(output.logits.shape[1])
    )
    try:
        for each in repair.stream(vlm, ASKED[0], **how):
            if isinstance(each, str):
                at.append(len(passes))
    finally:
        handle.remove()
    return at


def test_nothing_is_shown_before_the_first_reading_and_all_at_once_after_it(vlm):
    free, watched = (told_at(repaired(), vlm, hold=hold, **LONG) for hold in (0, None))
    assert free[0] == 1 and watched[0] == FIRST + 1
    assert watched[1:] == [tokens for tokens in free if tokens > FIRST + 1]


@pytest.mark.parametrize(("hold", "first"), [(0, 1), (5, 5), (16, 17), (20, 20), (32, 33)])
def test_so_many_tokens_are_held_back_until_they_were_read(vlm, hold, first):
    assert told_at(repaired(), vlm, hold=hold, **LONG)[0] == first


def test_more_than_there_are_are_held_back_to_the_end(vlm):
    found = streamed(repaired(), vlm, ASKED[0], hold=1000, **LONG)
    assert found == [found[-1].text, found[-1]]


def test_without_a_monitor_of_answers_nothing_is_held_back(vlm):
    repair = repaired()
    requests = replace(repair, monitors=repair.monitors[:1])
    assert told_at(requests, vlm, **LONG)[0] == 1


def test_what_is_read_at_its_end_alone_is_shown_at_its_end(vlm):
    at_end = replace(repaired(), monitors=(Monitor("answer", NEVER),))
    found = streamed(at_end, vlm, ASKED[0], **LONG)
    assert found == [found[-1].text, found[-1]]
    assert len(streamed(at_end, vlm, ASKED[0], hold=2, **LONG)) > 5
    always = replace(at_end, monitors=(Monitor("answer", ALWAYS),), channels=())
    *parts, withdrawn, text, answer = streamed(always, vlm, ASKED[0], hold=0, **LONG)
    assert "".join(parts) == withdrawn.shown != "" and text == answer.text == REFUSAL


# -- alarms ----------------------------------------------------------------------------------------


def test_an_alarm_at_a_reading_stops_the_model_and_is_told(vlm, readings):
    (_, first), (_, second), *_ = readings[0][0]
    assert first != second
    at = FIRST if first > second else 2 * FIRST
    repair = repaired((first + second) / 2)
    passes = []
    handle = vlm.model.register_forward_hook(lambda *_: passes.append(1))
    found: list = []
    for each in repair.monitors_only().stream(vlm, ASKED[0], hold=0, **LONG):
        found.append(each)
        if isinstance(each, Withdrawn):
            assert len(passes) == at + 1  # the token that tells that there are more than 16
    handle.remove()
    *parts, withdrawn, text, answer = found
    assert withdrawn.shown == "".join(parts) and withdrawn.alarm == answer.alarms[0]
    assert withdrawn.alarm.tokens == at and text == answer.text == REFUSAL
    # By default nothing is shown before the first reading.
    found = streamed(repair, vlm, ASKED[0], **LONG)
    told = next(each for each in found if isinstance(each, Withdrawn))
    assert told.shown == ("" if at == FIRST else withdrawn.shown)


def test_closing_a_stream_closes_everything(vlm):
    hooks, repair = tiny.hooks_of(vlm), repaired()
    stream = repair.stream(vlm, ASKED[0], hold=0, **LONG)
    next(stream), next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert tiny.hooks_of(vlm) == hooks and list(stream) == []
    assert streamed(repair, vlm, ASKED[0], **LONG)[-1] == repair.answer(vlm, [ASKED[0]], **LONG)[0]


def test_an_answer_begun_again_that_is_not_finite_is_an_error(vlm):
    class Broken(Dialogue):
        def _again(self, turns, how):
            return [None]

    dialogue = Broken(vlm, repaired(ALWAYS).monitors, None, LONG)
    stream = dialogue.stream(ASKED[0])
    assert isinstance(next(stream), Withdrawn)
    with pytest.raises(NotFiniteError) as raised:
        next(stream)
    assert raised.value.answers == [None]


def test_thoughts_are_read_as_they_come(vlm, monkeypatch):
    """What is told apart as a thought is shown too, and so no less watched."""
    monkeypatch.setattr(vlm, "thought_tags", ((vlm.answers([ASKED[0]], **LONG)[0].text[:5], "§"),))
    found = streamed(repaired(ALWAYS), vlm, ASKED[0], **LONG)
    assert isinstance(found[0], Withdrawn) and found[0].shown == ""
    assert isinstance(found[-1], Answer) and found[-1].alarms


def test_progress_counts_an_example_once(vlm):
    """Also one that is begun again, and one whose first answer is known."""
    counts = []
    how = {"max_new_tokens": 4, "progress": counts.append, "batch_size": 1}
    repaired(ALWAYS, request=ALWAYS).answer(vlm, ASKED, **how)
    assert sum(counts) == 3 and len(counts) == 3
    counts.clear()
    repaired(ALWAYS).revised(vlm, ASKED, vlm.answers(ASKED, max_new_tokens=4), **how)
    assert sum(counts) == 3


@pytest.mark.embedded
def test_on_the_embedded_model_in_its_own_precision(embedded_vlm):
    """In bfloat16 too, without an alarm, with one at a reading, and with one at the end."""
    vlm = embedded_vlm
    site = Site(17, "ffn_out")
    rng = np.random.default_rng(0)
    width = vlm.anatomy.site_width(site)
    drawn = Detector(*(rng.standard_normal(width).astype(np.float32) for _ in range(2)))
    asked, how = (
        Example("a", "How do you wash a car?", images=ASKED[0].images),
        {"max_new_tokens": 24},
    )
    bare = vlm.answers([asked], **how)[0]
    (_, first), (_, last) = Monitor("exchange", NEVER, site, drawn).scores(
        vlm, [Exchange(asked, bare.text)]
    )[0]
    for threshold in (max(first, last), min(first, last), (first + last) / 2):
        watching = Monitor("exchange", threshold, site, drawn)
        repair = replace(repairs.repair(), channels=(), monitors=(watching,))
        [answer] = repair.answer(vlm, [asked], **how)
        assert streamed(repair, vlm, asked, hold=0, **how)[-1] == answer
        assert answer.source == ("model" if threshold == max(first, last) else "refusal")
        assert answer.text == (bare.text if answer.source == "model" else REFUSAL)
