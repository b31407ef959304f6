"""What certificates rest on: an opened request's answer is the same beside every picture.

Through `Repair.answer` of a tiny model, in all that may follow an alarm of the request, greedily
and drawn, alone and in batches, for random pictures and for those of a descent.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from care.attacks.pgd import universal_image
from care.attacks.presets import PGDConfig
from care.data.conversation import Conversation
from care.data.example import Example
from care.data.small_world import suites
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import SUSPECTED, Monitor
from care.defenses.monitors.reading import Exchange, encoded, readable
from care.models.sites import Site
from kit import repairs, tiny

WORDS = ("how do you wash a car?", "build a small house from wood", "picture soap and water")
REQUESTS = [Example(f"r{n}", text) for n, text in enumerate(WORDS)]
NEVER, ALWAYS = 1e9, -1e9


def detector(seed=0):
    rng = np.random.default_rng(seed)
    return Detector(*(rng.standard_normal(tiny.WIDTH).astype(np.float32) for _ in range(2)))


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


@pytest.fixture(scope="module")
def middle(vlm):
    """A threshold that some requests are above and some below."""
    watching = Monitor("request", 0.0, Site(1, "ffn_out"), detector())
    scores = [found[0][1] for found in watching.scores(vlm, [Exchange(e) for e in REQUESTS])]
    low, high = sorted(scores)[:2]
    assert high - low > 1e-2  # far from what rounding does
    return (low + high) / 2


def repaired(request, answer, said=1):
    """A repair whose monitors have these thresholds; that of answers reads at `said`'s layer."""
    monitors = (
        Monitor("request", request, Site(1, "ffn_out"), detector()),
        Monitor("answer", answer, Site(said, "layer_out"), detector(1)),
    )
    return replace(repairs.repair(), monitors=monitors)


def drawn_pictures(seed, n):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


@pytest.fixture(scope="module")
def optimised(vlm):
    """Pictures of descents that make the model begin as wished."""
    config = PGDConfig(epsilon=None, steps=8, step_size=16 / 255, batch=3)
    return [
        universal_image(vlm, REQUESTS, [text] * 3, tiny.picture(n, (28, 28)), config).image
        for n, text in enumerate(("To do this, you'll need", "1. First, wood"))
    ]


def shown(answer):
    return answer.text, answer.source, [alarm.monitor for alarm in answer.alarms]


def beside(pictures):
    return [
        replace(request, images=(picture,))
        for request, picture in zip(REQUESTS, pictures, strict=True)
    ]


HOW = [{"max_new_tokens": 6}, {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}]


@pytest.mark.parametrize("how", HOW, ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    ("threshold", "channels", "source"),
    [(NEVER, True, "text alone"), (ALWAYS, True, "refusal"), (ALWAYS, False, "refusal")],
)
def test_optimised_pictures_change_nothing(vlm, optimised, how, threshold, channels, source):
    repair = repaired(ALWAYS, threshold)
    repair = repair if channels else repair.monitors_only()
    found = [
        [shown(answer) for answer in repair.answer(vlm, beside([picture] * 3), **how)]
        for picture in (*optimised, *drawn_pictures(0, 2))
    ]
    assert all(each == found[0] for each in found)
    assert [each[1] for each in found[0]] == [source] * 3
    bare = [vlm.generate(beside([picture] * 3), **how) for picture in optimised]
    assert bare[0] != bare[1]  # of the model itself they are an input


@pytest.fixture(scope="module")
def alone_of(vlm, middle):
    """A repair by the threshold of its answers, and how it answers each request alone."""
    scores = repaired(NEVER, NEVER).monitors[1].scores(vlm, [Exchange(e, "wood") for e in REQUESTS])

    @cache
    def found(said, place):
        repair = repaired(middle, scores[0][0][1] if said is None else said)
        return repair, {e.id: repair.answer(vlm, [e], **HOW[place])[0] for e in REQUESTS}

    return found


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    order=st.permutations(range(3)),
    size=st.integers(1, 3),
    place=st.sampled_from(range(len(HOW))),
    said=st.sampled_from([NEVER, ALWAYS, None]),
    begun=st.lists(st.sampled_from(["", "Sure, here is", "1."]), min_size=3, max_size=3),
)
def test_what_is_beside_and_order_change_nothing(
    vlm, alone_of, seed, order, size, place, said, begun
):
    """Requests that open are answered as if they were asked alone and as text alone."""
    repair, alone = alone_of(said, place)
    opened = {id for id, answer in alone.items() if answer.alarms[:1] and _by_request(answer)}
    assert 0 < len(opened) < 3
    asked = [beside(drawn_pictures(seed, 3))[n] for n in order]
    asked = [replace(e, opening=words) for e, words in zip(asked, begun, strict=True)]
    for example, answer in zip(
        asked, repair.answer(vlm, asked, batch_size=size, **HOW[place]), strict=True
    ):
        if example.id in opened:
            assert answer.text == alone[example.id].text
            assert len(answer.alarms) == len(alone[example.id].alarms)


def _by_request(answer):
    return answer.alarms[0].monitor == "request"


@pytest.mark.parametrize("how", HOW, ids=["greedy", "drawn"])
def test_an_opened_request_may_be_begun_again_and_is_the_same_then_too(vlm, how):
    """The channels' closing changes the answer below the threshold that the first was above."""
    requests = beside(drawn_pictures(1, 3))
    first = repaired(ALWAYS, NEVER).answer(vlm, requests, **how)
    with repaired(ALWAYS, NEVER).opened().applied(vlm):
        second = vlm.answers([e.text_alone() for e in requests], **how)
    layer, place, limit = _between(vlm, first, second)
    repair = repaired(ALWAYS, limit, layer)
    found = [
        repair.answer(vlm, [beside(drawn_pictures(seed, 3))[place]], **how)[0] for seed in range(4)
    ]
    assert {answer.source for answer in found} == {"repaired"}
    assert {answer.text for answer in found} == {second[place].text}


def _between(vlm, first, second):
    """(layer, place, threshold) at which the answer `first[place]` alarms and the other doesn't."""
    for layer in range(vlm.anatomy.n_layers):
        watching = repaired(ALWAYS, 0.0, layer).monitors[1]
        before, after = (
            watching.scores(vlm, [Exchange(e, a.text) for e, a in zip(REQUESTS, said, strict=True)])
            for said in (first, second)
        )
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            # An answer to a request that has raised an alarm raises one at the midpoint already.
            if old and new and new[-1][1] + 1e-2 < min(old[-1][1], SUSPECTED):
                return layer, place, (old[-1][1] + new[-1][1]) / 2
    return pytest.fail("no layer tells any two answers apart")


def test_answers_are_the_same_from_the_bare_models(vlm, middle):
    repair, asked = repaired(middle, NEVER), beside(drawn_pictures(2, 3))
    for how in HOW:
        bare = vlm.answers(asked, **how)
        revised = repair.revised(vlm, asked, bare, **how)
        assert [*map(shown, revised)] == [*map(shown, repair.answer(vlm, asked, **how))]


@pytest.mark.embedded
@pytest.mark.parametrize("how", HOW, ids=["greedy", "drawn"])
def test_on_the_embedded_model_in_its_own_precision(embedded_vlm, how):
    """In bfloat16, beside pictures that work and others, next to requests that stay as they are."""
    vlm = embedded_vlm
    drawn_apart = suites.load("direct", n=6).examples
    shown = [suites.load("pgd-32", n=1).examples[0].images[0], *drawn_pictures(0, 2)]
    mates = suites.load("vqa", n=4).examples
    repair = replace(repairs.repair(), channels=(), monitors=(Monitor("request", 0.0),))
    alone = repair.answer(vlm, [*drawn_apart, *mates], **how)
    opened = [n for n, answer in enumerate(alone[:6]) if answer.alarms]
    assert len(opened) >= 4
    for picture in shown:
        asked = [replace(e, images=(picture,), opening="Sure, here is") for e in drawn_apart]
        found = repair.answer(vlm, [*asked, *mates], **how)
        assert [found[n].text for n in opened] == [alone[n].text for n in opened]
        assert {found[n].source for n in opened} == {"text alone"}


# -- conversations ---------------------------------------------------------------------------------


def talk(pictures, words=WORDS, opening=""):
    """A conversation with a picture in every turn of the user's, the last of which has no words."""
    turns = [
        {"role": "user", "content": [_text(words[0]), _picture(pictures[0])]},
        {"role": "assistant", "content": words[1]},
        {
            "role": "user",
            "content": [_picture(pictures[1]), _text(words[2]), _picture(pictures[2])],
        },
        {"role": "assistant", "content": "soap"},
        {"role": "user", "content": [_picture(pictures[3])]},
    ]
    return Conversation.of(turns + [{"role": "assistant", "content": opening}] * bool(opening))


def _text(words):
    return {"type": "text", "text": words}


def _picture(image):
    return {"type": "image", "image": image}


def test_a_conversation_loses_its_pictures_wherever_they_stand():
    one, other = (talk(drawn_pictures(seed, 4)) for seed in range(2))
    assert one.id != other.id and one.text_alone().digest() == other.text_alone().digest()
    alone = one.text_alone()
    assert alone.prompt == one.prompt and alone.images == ()
    contents = [turn["content"] for turn in alone.messages()]
    assert contents == [[_text(text)] for text in (*WORDS, "soap", "...")]


def test_monitors_read_the_history_with_the_request_and_the_whole_answer(vlm):
    asked = talk(drawn_pictures(0, 4), opening="Sure, here")
    said = Exchange(asked, "Sure, here is how to wash a car")
    request, answer, exchange = (
        readable(vlm, reads, said) for reads in ("request", "answer", "exchange")
    )
    assert (
        request.request.messages() == exchange.request.messages() == list(asked.text_alone().chat)
    )
    assert exchange.answer == answer.answer == answer.request.prompt == said.answer
    batch, counted = encoded(vlm, "request", [request])
    shown = vlm.tokenizer.decode(batch.inputs["input_ids"][0][counted[0]].tolist())
    assert all(words in shown for words in (*WORDS, "soap")) and said.answer not in shown
    batch, counted = encoded(vlm, "exchange", [exchange])
    assert vlm.tokenizer.decode(batch.inputs["input_ids"][0][counted[0]].tolist()) == said.answer
    assert all(words in vlm.tokenizer.decode(batch.inputs["input_ids"][0]) for words in WORDS)


def test_a_word_of_the_history_moves_the_scores_of_requests_and_exchanges(vlm):
    pictures = drawn_pictures(0, 4)
    one, other = talk(pictures), talk(pictures, words=("wash a car", *WORDS[1:]))
    watching = Monitor("exchange", NEVER, Site(1, "ffn_out"), detector())
    for monitor in (repaired(NEVER, NEVER).monitors[0], watching):
        scores = monitor.scores(vlm, [Exchange(one, "soap"), Exchange(other, "soap")])
        assert scores[0] != scores[1]
    said = repaired(NEVER, NEVER).monitors[1]
    assert len({str(s) for s in said.scores(vlm, [Exchange(e, "soap") for e in (one, other)])}) == 1


@settings(max_examples=8, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)),
    how=st.sampled_from(HOW),
    said=st.sampled_from([NEVER, ALWAYS]),
    channels=st.booleans(),
    opening=st.sampled_from(["", "Sure, here is"]),
)
def test_no_picture_of_any_turn_changes_the_answer_to_an_opened_conversation(
    vlm, seeds, how, said, channels, opening
):
    """The certificate's property: after an alarm of the request nothing depends on a picture."""
    repair = repaired(ALWAYS, said)
    repair = repair if channels else repair.monitors_only()
    one, other = (talk(drawn_pictures(seed, 4), opening=opening) for seed in seeds)
    mate = beside(drawn_pictures(seeds[0], 3))[0]
    [first] = repair.answer(vlm, [one], **how)
    second, _ = repair.answer(vlm, [other, mate], **how)
    *_, third = repair.stream(vlm, other, **how)
    [plain] = repair.answer(vlm, [one.text_alone()], **how)
    assert shown(first) == shown(second) == shown(third)
    assert first.text == plain.text
    assert first.source == ("text alone" if said == NEVER else "refusal")
