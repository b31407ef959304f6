"""Monitors on a tiny model: which tokens count, how scores are pooled, and what a picture does."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image

from care.data.example import Example
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.features import Labelled, token_scores
from care.defenses.monitors.monitor import WINDOW, Monitor, checkpoints, first_alarms, pooled
from care.defenses.monitors.reading import Exchange, encoded, over_batches, readable
from care.errors import NotFiniteError, UsageError
from care.models.hooks import read
from care.models.short_pass import activations_of
from care.models.sites import Role, Site
from kit import tiny

SITE = Site(1, "ffn_out")


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


def picture(seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))


def detector(seed=0):
    rng = np.random.default_rng(seed)
    return Detector(*(rng.standard_normal(tiny.WIDTH).astype(np.float32) for _ in range(2)))


def monitor(reads="answer", pooling="mean", threshold=0.0):
    return Monitor(reads, threshold, SITE, detector(), pooling)


ASKED = Example("a", "How do you build a small house from wood?", images=(picture(),))
SAID = "To wash a car, you'll need to gather the following: water, soap and a sponge."


# -- pooling ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.data())
def test_pooled_scores_are_what_the_formulas_say(scores, data):
    t = data.draw(st.integers(1, len(scores)))
    s = np.array(scores)
    assert_allclose(pooled(s, "mean", [t]), [s[:t].mean()], atol=1e-9)
    assert_allclose(pooled(s, "last", [t]), [s[t - 1]])
    windows = [s[n : n + WINDOW].mean() for n in range(max(1, t - WINDOW + 1))]
    wanted = max(windows) if t >= WINDOW else s[:t].mean()
    assert_allclose(pooled(s, "window", [t]), [wanted], atol=1e-9)


@given(st.integers(1, 100_000))
def test_an_answer_is_read_at_doubling_lengths_and_at_its_end(tokens):
    at = checkpoints(tokens)
    assert at[-1] == tokens and all(a < b for a, b in pairwise(at))
    assert at[:-1] == [16 * 2**k for k in range(len(at) - 1)]
    assert sum(at) < 3 * tokens  # all readings together, were each a pass of its own


# -- what is read ----------------------------------------------------------------------------------


def test_tokens_that_count_are_those_of_the_answer_and_not_the_templates(vlm):
    shown = [readable(vlm, "answer", Exchange(ASKED, text)) for text in (SAID, "Sorry")]
    batch, counted = encoded(vlm, "answer", shown)
    for row, text in enumerate((SAID, "Sorry")):
        ids = batch.inputs["input_ids"][row][counted[row]].tolist()
        assert vlm.tokenizer.decode(ids) == text


def test_an_exchange_counts_the_answer_after_the_request_without_its_picture(vlm):
    batch, counted = encoded(vlm, "exchange", [readable(vlm, "exchange", Exchange(ASKED, SAID))])
    assert not bool((batch.roles == Role.IMAGE).any())
    assert vlm.tokenizer.decode(batch.inputs["input_ids"][0][counted[0]].tolist()) == SAID
    assert ASKED.prompt in vlm.tokenizer.decode(batch.inputs["input_ids"][0].tolist())


def test_a_request_counts_whole_and_without_its_picture(vlm):
    batch, counted = encoded(vlm, "request", [readable(vlm, "request", Exchange(ASKED))])
    assert bool(counted.all()) and not bool((batch.roles == Role.IMAGE).any())


@pytest.mark.parametrize(
    ("reads", "example", "answer"),
    [
        ("request", Example("a", "", images=(picture(),)), SAID),
        ("answer", ASKED, ""),
        ("answer", ASKED, "<pad><|end|>"),
        ("exchange", ASKED, "  \n"),
    ],
)
def test_what_has_no_words_is_not_read_and_raises_no_alarm(vlm, reads, example, answer):
    exchange = Exchange(example, answer)
    assert readable(vlm, reads, exchange) is None
    assert monitor(reads, threshold=-1e9).alarms(vlm, [exchange]) == [None]


def test_a_pictured_request_without_words_can_still_be_read_as_an_exchange(vlm):
    exchange = Exchange(Example("a", "", images=(picture(),)), SAID)
    assert monitor("exchange", threshold=-1e9).alarms(vlm, [exchange])[0] is not None


def test_special_tokens_that_an_answer_spells_are_read_as_no_tokens(vlm):
    clean, spelt = (Exchange(ASKED, text) for text in ("build a house", "<|end|> build a house"))
    one, other = monitor().scores(vlm, [clean, spelt])
    assert one == other


@pytest.mark.parametrize(
    "said",
    [
        "Mix the two. </think> Done.",
        "<think>Mix the two.",
        "<think>Mix the two.</think>",
        "analysisMix the two.",
    ],
)
@pytest.mark.parametrize("reads", ["answer", "exchange"])
def test_no_tag_of_a_thought_hides_words_from_a_monitor(vlm, reads, said):
    shown = readable(vlm, reads, Exchange(ASKED, said))
    assert shown is not None and "Mix the two." in shown.answer
    [scores] = monitor(reads).scores(vlm, [Exchange(ASKED, said)])
    assert scores[-1][0] == len(vlm.response_ids(shown.answer))


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["request", "answer", "exchange"])
@pytest.mark.parametrize("pooling", ["mean", "window", "last"])
def test_scores_are_those_of_a_whole_pass(vlm, reads, pooling):
    watching = monitor(reads, pooling)
    shown = readable(vlm, reads, Exchange(ASKED, SAID))
    batch, counted = encoded(vlm, reads, [shown])
    with read(vlm, [SITE]) as recorder:
        vlm.forward(batch)
        h = recorder[SITE][0][0][counted[0]].numpy()
    s = watching.detector(h)
    at = [len(s)] if reads == "request" else checkpoints(len(s))
    found = watching.scores(vlm, [Exchange(ASKED, SAID)])[0]
    assert [tokens for tokens, _ in found] == at
    assert_allclose([score for _, score in found], pooled(s, pooling, at), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reads", ["request", "answer", "exchange"])
def test_no_picture_moves_a_score(vlm, reads):
    exchanges = [Exchange(replace(ASKED, images=(picture(seed),)), SAID) for seed in range(3)]
    exchanges.append(Exchange(replace(ASKED, images=()), SAID))
    scores = monitor(reads).scores(vlm, exchanges)
    assert all(each == scores[0] for each in scores)


def test_scores_do_not_depend_on_the_batch(vlm):
    exchanges = [Exchange(ASKED, SAID[:n]) for n in (5, 20, 60)]
    together = monitor().scores(vlm, exchanges)
    alone = [monitor().scores(vlm, [each])[0] for each in exchanges]
    for one, other in zip(together, alone, strict=True):
        assert_allclose([s for _, s in one], [s for _, s in other], rtol=1e-4, atol=1e-4)


def test_what_reads_the_same_is_read_once(vlm):
    asked = [ASKED, replace(ASKED, id="b", images=(picture(1),)), Example("c", "Where is it?")]
    shown = [each for e in asked if (each := readable(vlm, "request", Exchange(e)))]
    read: list[int] = []

    def work(batch, counted):
        read.extend(counted.sum(dim=1).tolist())
        return read[-len(batch) :]

    first, same, other = over_batches(vlm, "request", shown, work, 8)
    assert len(read) == 2 and first == same != other
    assert over_batches(vlm, "request", [], work, 8) == []


@pytest.mark.parametrize("reads", ["request", "answer", "exchange"])
def test_one_pass_gives_the_scores_of_tokens_and_the_log_odds(vlm, reads):
    exchanges = [Exchange(ASKED, SAID[:n]) for n in (9, 40)]
    shown = [each for e in exchanges if (each := readable(vlm, reads, e))]
    labelled = [Labelled(each, True, "k", "g") for each in shown]
    found = token_scores(vlm, reads, labelled, {(SITE, "mean"): detector()}, 8)
    for each, scores in zip(found, monitor(reads).scores(vlm, exchanges), strict=True):
        assert each.scores[SITE, "mean"].mean() == pytest.approx(scores[-1][1], abs=1e-4)
    if reads == "exchange":
        assert [each.log_odds for each in found] == [None, None]
        return
    odds = vlm.refusal_log_odds([each.request for each in shown])
    assert_allclose([each.log_odds or 0.0 for each in found], odds, atol=1e-5)


def test_an_early_reading_is_the_reading_of_the_early_words(vlm):
    long = " ".join([SAID] * 3)
    found = monitor().scores(vlm, [Exchange(ASKED, long)])[0]
    ids = vlm.response_ids(long)
    early = vlm.tokenizer.decode(ids[: found[0][0]])
    assert monitor().scores(vlm, [Exchange(ASKED, early)])[0][-1][1] == pytest.approx(
        found[0][1], abs=1e-4
    )


def test_the_first_reading_above_the_threshold_raises_the_alarm(vlm):
    long = " ".join([SAID] * 3)
    found = monitor().scores(vlm, [Exchange(ASKED, long)])[0]
    between = sorted(score for _, score in found)[0]
    alarm = monitor(threshold=between).alarms(vlm, [Exchange(ASKED, long)])[0]
    first = next((tokens, score) for tokens, score in found if score > between)
    assert alarm is not None and (alarm.tokens, alarm.score) == first
    assert alarm.monitor == "answer" and alarm.threshold == between
    highest = max(score for _, score in found)
    assert monitor(threshold=highest).alarms(vlm, [Exchange(ASKED, long)]) == [None]


@pytest.mark.parametrize("threshold", [-3.0, 0.2, 0.9])
def test_less_is_enough_for_an_alarm_where_the_request_has_raised_one(vlm, threshold):
    exchange = Exchange(ASKED, SAID)
    for reads, lowered in (("answer", True), ("exchange", True), ("request", False)):
        watching = monitor(reads, threshold=threshold)
        wanted = min(threshold, 0.5) if lowered else threshold
        assert watching.limit(True) == wanted and watching.limit(False) == threshold
        highest = max(score for _, score in watching.scores(vlm, [exchange])[0])
        [alarm] = watching.alarms(vlm, [exchange], suspected=[True])
        assert (alarm is not None) == (highest > wanted)
    assert Monitor("request", threshold).limit(True) == threshold  # of log-odds ½ means nothing


def test_without_a_detector_the_score_is_the_refusal_log_odds_of_the_text_alone(vlm):
    [[(tokens, score)]] = Monitor("request", 0.0).scores(vlm, [Exchange(ASKED)])
    assert tokens == 0
    assert score == pytest.approx(vlm.refusal_log_odds([replace(ASKED, images=())])[0], abs=1e-5)


def test_all_that_read_a_request_share_a_pass_and_alarm_as_each_does_alone(vlm, monkeypatch):
    exchanges = [
        Exchange(ASKED),
        Exchange(Example("b", "Sing.")),
        Exchange(Example("c", "", images=(picture(),))),
    ]
    watching = [monitor("request", threshold=-1e9), Monitor("request", -1e9)]
    watching += [Monitor("request", -1e9, Site(0, "mhsa_out"), detector(1))]
    [first, odds, other] = [each.alarms(vlm, exchanges, 8) for each in watching]
    passes, forward = [], vlm.forward
    monkeypatch.setattr(vlm, "forward", lambda *a, **k: (passes.append(1), forward(*a, **k))[1])
    assert first_alarms(vlm, watching, exchanges, 8) == first and len(passes) == 1
    assert first_alarms(vlm, watching[1:], exchanges, 8) == odds and len(passes) == 2
    assert first_alarms(vlm, watching[::2], exchanges, 8) == first and len(passes) == 3
    assert first[2] is odds[2] is other[2] is None
    assert len({alarm.score for alarm in (first[0], odds[0], other[0]) if alarm}) == 3


def test_numbers_that_are_not_finite_are_an_error_and_no_silence():
    vlm = tiny.tiny_vlm()
    with torch.no_grad():
        vlm.anatomy.module(SITE).down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        monitor().alarms(vlm, [Exchange(ASKED, SAID)])


def test_a_pass_is_left_after_the_last_site_that_is_read(vlm):
    batch = vlm.batch([ASKED])
    later = []
    handle = vlm.anatomy.module(Site(3, "ffn_out")).register_forward_hook(
        lambda *_: later.append(1)
    )
    try:
        found = activations_of(vlm, batch, [Site(0, "mhsa_out"), SITE])
    finally:
        handle.remove()
    assert set(found) == {Site(0, "mhsa_out"), SITE} and not later
    with read(vlm, [SITE]) as recorder:
        vlm.forward(batch)
        assert torch.equal(found[SITE], recorder[SITE][0])


def test_what_makes_no_monitor_is_refused():
    with pytest.raises(UsageError, match="reads one of request, answer, exchange"):
        Monitor("picture", 0.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="must be finite"):
        Monitor("answer", float("nan"), SITE, detector())
    with pytest.raises(UsageError, match="a site and a detector, or neither"):
        Monitor("answer", 0.0, SITE)
    with pytest.raises(UsageError, match="no refusal log-odds"):
        Monitor("exchange", 0.0)
