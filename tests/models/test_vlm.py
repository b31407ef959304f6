"""VLM: batching never changes results, decoding equals the library's, likelihoods are exact."""

import dataclasses

import numpy as np
import pytest
import torch

from care.data.example import Example
from care.errors import DataError, UsageError
from care.models import decoding, prompt_cache
from care.models.decoding import end_tokens
from care.models.sites import Role
from care.models.thoughts import text_of
from care.models.vlm import VLM
from kit import tiny
from kit.refusals import refusals
from kit.tiny import tokens_of

EXAMPLES = tiny.mixed_examples(7)


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


def naive_greedy(vlm, example, steps):
    """Answer tokens without cache, padding or batch."""
    inputs = dict(vlm.batch([example]).inputs)
    answer = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(vlm.model(**inputs).logits[0, -1].argmax())
        if token in end_tokens(vlm.model, vlm.tokenizer):
            break
        answer.append(token)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
            if key in inputs:
                new = token if key == "input_ids" else int(key == "attention_mask")
                inputs[key] = torch.cat([inputs[key], torch.tensor([[new]])], dim=1)
    return answer


# -- batches ---------------------------------------------------------------------------------------


def test_batch_pads_left_and_knows_roles(vlm):
    batch = vlm.batch(EXAMPLES)
    assert len(batch) == len(EXAMPLES)
    assert batch.inputs["input_ids"].shape == batch.roles.shape
    for row, example in enumerate(EXAMPLES):
        roles = batch.roles[row]
        assert int((roles == Role.IMAGE).sum()) == tiny.VISUAL * len(example.images)
        padding = int((roles == Role.PAD).sum())
        assert (roles[:padding] == Role.PAD).all()
        assert (batch.inputs["attention_mask"][row] == (roles != Role.PAD)).all()
    assert len(batch.inputs["pixel_values"]) == 3
    assert "pixel_values" not in vlm.batch(EXAMPLES[0]).inputs


def test_responses_are_appended_whatever_their_length(vlm):
    responses = ["I'm sorry.", "", "To wash a car, you'll need to gather water."]
    batch = vlm.batch(EXAMPLES[:3], responses)
    for row, response in enumerate(responses):
        ids = batch.inputs["input_ids"][row][batch.roles[row] == Role.RESPONSE]
        assert vlm.tokenizer.decode(ids) == response
    assert (batch.roles[0, -1] == Role.RESPONSE) and (batch.roles[1, -1] == Role.TEXT)
    right = vlm.batch(EXAMPLES[0], "I'm")
    assert (right.roles == Role.RESPONSE).sum() >= 1


def test_repacking_undoes_right_padding():
    vlm = tiny.tiny_vlm()
    vlm.tokenizer.padding_side = "left"
    left = vlm.batch(EXAMPLES).inputs
    vlm.tokenizer.padding_side = "right"
    right = vlm.batch(EXAMPLES).inputs
    assert torch.equal(left["input_ids"], right["input_ids"])


def test_images_of_any_size(vlm):
    for size in [(1, 1), (3, 500), (28, 28), (700, 20)]:
        batch = vlm.batch(Example("a", "hi", images=(tiny.picture(size=size),)))
        assert int((batch.roles == Role.IMAGE).sum()) == tiny.VISUAL
    two = vlm.batch(Example("a", "hi", images=(tiny.picture(), tiny.picture(1))))
    assert int((two.roles == Role.IMAGE).sum()) == 2 * tiny.VISUAL


LONG = Example("long", "word " * 800)

test_bad_input_is_refused = refusals(
    (UsageError, "at least one", lambda vlm: vlm.batch([])),
    (UsageError, "as many responses", lambda vlm: vlm.batch(EXAMPLES, ["one"])),
    (DataError, "placeholder <image>", lambda vlm: vlm.batch(Example("a", "look: <image>"))),
    (DataError, "more than the 512", lambda vlm: vlm.batch([EXAMPLES[0], LONG])),
    (UsageError, "max_new_tokens", lambda vlm: vlm.generate(EXAMPLES, max_new_tokens=0)),
    (UsageError, "batch_size", lambda vlm: vlm.generate(EXAMPLES, batch_size=0)),
    (UsageError, "temperature", lambda vlm: vlm.generate(EXAMPLES, temperature=float("nan"))),
    (UsageError, "empty response", lambda vlm: vlm.score(EXAMPLES[:1], [""])),
    (UsageError, "as many responses", lambda vlm: vlm.score(EXAMPLES[:2], ["a"])),
)


# -- forward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_do_not_depend_on_padding(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    together = vlm.forward(vlm.batch(EXAMPLES), logits_to_keep=2)
    assert together.shape[1] == 2 and not together.requires_grad
    for row, example in enumerate(EXAMPLES):
        alone = vlm.forward(vlm.batch(example))[:, -2:]
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_images_matter(vlm):
    example = EXAMPLES[1]
    other = dataclasses.replace(example, images=(tiny.picture(99),))
    logits = vlm.forward(vlm.batch([example, other]), logits_to_keep=1)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_gradients_on_request(vlm):
    batch = vlm.batch(EXAMPLES[1])
    batch.inputs["pixel_values"].requires_grad_()
    vlm.forward(batch, logits_to_keep=1, grad=True).sum().backward()
    assert batch.inputs["pixel_values"].grad.abs().sum() > 0
    vlm.model.zero_grad()


def test_bfloat16_runs():
    model, processor = tiny.tiny_llava()
    vlm = VLM(model.to(torch.bfloat16), processor)
    assert vlm.dtype == torch.bfloat16
    assert vlm.batch(EXAMPLES[1]).inputs["pixel_values"].dtype == torch.bfloat16
    assert len(vlm.generate(EXAMPLES[:3], max_new_tokens=3)) == 3
    assert np.isfinite(vlm.refusal_log_odds(EXAMPLES[:3])).all()


# -- generate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_the_naive_loop(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    examples = EXAMPLES[:5]
    expected = [text_of(vlm.tokenizer, naive_greedy(vlm, example, 6)) for example in examples]
    assert len(set(expected)) > 1
    assert vlm.generate(examples, max_new_tokens=6) == expected
    assert vlm.generate(examples, max_new_tokens=6, batch_size=2) == expected


@pytest.mark.parametrize("family", sorted(prompt_cache.PLAIN_POSITIONS))
def test_own_loop_equals_the_library_token_by_token(family, monkeypatch):
    """With end tokens at different steps, so that rows are dropped on the way."""
    vlm = VLM(*tiny.FAMILIES[family](), family)
    examples = [example for example in tiny.mixed_examples(12) if example.images]
    plain = [naive_greedy(vlm, example, 6) for example in examples[:2]]
    vlm.model.generation_config.eos_token_id = sorted({plain[0][2], plain[1][5], 1})
    own = tokens_of(vlm, examples)
    monkeypatch.setattr(prompt_cache, "PLAIN_POSITIONS", frozenset())
    assert own == tokens_of(vlm, examples)
    assert len({len(row) for row in own}) > 1


def test_finished_rows_leave_the_batch(vlm):
    sizes = []
    handle = vlm.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    examples = EXAMPLES[:6:2]
    full = vlm.generate(examples, max_new_tokens=12)
    early = vlm.generate(examples, max_new_tokens=decoding.STOP_EVERY)
    assert len(set(early)) == len(early)
    sizes.clear()
    cut = vlm.generate(examples, max_new_tokens=12, stop=lambda text: text == early[0])
    handle.remove()
    assert sizes == [3] * decoding.STOP_EVERY + [2] * (12 - decoding.STOP_EVERY)
    assert cut == [early[0], *full[1:]]


def test_stop_cuts_every_row_at_the_same_place_whatever_the_batch(vlm):
    def stop(text):
        return len(text) > 12

    answers = vlm.generate(EXAMPLES, max_new_tokens=24, stop=stop)
    assert answers == vlm.generate(EXAMPLES, max_new_tokens=24, stop=stop, batch_size=1)
    seen = []
    vlm.generate(EXAMPLES[:2], max_new_tokens=8, stop=lambda text: bool(seen.append(text)))
    assert len(seen) == 4


def test_sampling_depends_on_seed_and_example_only(vlm):
    hot = {"max_new_tokens": 6, "temperature": 1.0}
    first = vlm.generate(EXAMPLES, **hot)
    assert first == vlm.generate(EXAMPLES, batch_size=2, **hot)
    assert first[3] == vlm.generate(EXAMPLES[3], **hot)[0]
    assert first != vlm.generate(EXAMPLES, seed=1, **hot)
    assert len(set(vlm.generate([EXAMPLES[0]] * 4, **hot))) > 1  # repeats differ


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_sampling_follows_the_model_s_distribution(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    logits = vlm.forward(vlm.batch(EXAMPLES[1]), logits_to_keep=1)[0, -1]
    expected = (logits / 2.0).softmax(-1)
    drawn = tokens_of(vlm, [EXAMPLES[1]] * 600, temperature=2.0, steps=1)
    counts = torch.bincount(torch.tensor([row[0] for row in drawn if row]), minlength=len(logits))
    assert (counts / 600 - expected).abs().max() < 4 * (0.25 / 600) ** 0.5


def test_progress_and_order(vlm):
    done = []
    answers = vlm.generate(EXAMPLES, max_new_tokens=2, batch_size=2, progress=done.append)
    assert sum(done) == len(EXAMPLES) == len(answers)
    assert vlm.generate([], max_new_tokens=2) == []
    assert vlm.generate(EXAMPLES[0], max_new_tokens=2) == answers[:1]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 TB")],
)
def test_out_of_memory_halves_the_batch(vlm, monkeypatch, error):
    expected = vlm.generate(EXAMPLES, max_new_tokens=3)
    sizes = []
    whole = VLM.batch

    def small_only(self, examples, responses=None):
        sizes.append(len(examples))
        if len(examples) > 2:
            raise error
        return whole(self, examples, responses)

    monkeypatch.setattr(VLM, "batch", small_only)
    assert vlm.generate(EXAMPLES, max_new_tokens=3) == expected
    assert sizes[0] == 3 and max(sizes[1:]) == 1

    monkeypatch.setattr(VLM, "batch", lambda *args: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError):
        vlm.generate(EXAMPLES[:1])


# -- likelihoods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_score_equals_the_full_softmax(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    responses = ["I'm sorry.", "Sure, here is how. " * 3, "x", "To wash", "a", "b c", "d"]
    score = vlm.score(EXAMPLES, responses, batch_size=3)
    for index, (example, response) in enumerate(zip(EXAMPLES, responses, strict=True)):
        batch = vlm.batch([example], [response])
        log_p = vlm.forward(batch).double().log_softmax(-1)[0]
        ids = batch.inputs["input_ids"][0]
        places = (batch.roles[0] == Role.RESPONSE).nonzero().flatten()
        expected = sum(float(log_p[place - 1, ids[place]]) for place in places)
        assert score.tokens[index] == len(places)
        assert score.logprob[index] == pytest.approx(expected, rel=1e-4)
        assert score.mean[index] == pytest.approx(expected / len(places), rel=1e-4)
        likeliest = [log_p[place - 1].argmax() == ids[place] for place in places]
        assert score.greedy[index] == all(likeliest)


def test_the_likeliest_next_token_is_a_greedy_response_and_another_is_not(vlm):
    likeliest = vlm.forward(vlm.batch(EXAMPLES), logits_to_keep=1)[:, -1].argmax(-1).tolist()
    texts = [vlm.tokenizer.decode([token]) for token in likeliest]
    kept = [i for i, text in enumerate(texts) if vlm.response_ids(text) == [likeliest[i]]]
    assert kept
    examples = [EXAMPLES[i] for i in kept]
    assert vlm.score(examples, [texts[i] for i in kept]).greedy.all()
    others = ["x" if texts[i] != "x" else "y" for i in kept]
    assert not vlm.score(examples, others).greedy.any()
    # A likely start doesn't make a greedy whole, nor does a longer row beside it.
    longer = vlm.score([examples[0]] * 2, [texts[kept[0]] + " zq zq zq", texts[kept[0]]])
    assert longer.greedy.tolist() == [False, True]


def test_score_computes_logits_at_the_answer_only(vlm):
    shapes = []
    handle = vlm.model.lm_head.register_forward_hook(
        lambda module, args, output: shapes.append(output.shape[1])
    )
    vlm.score([EXAMPLES[0]], ["I'm sorry."])
    vlm.refusal_log_odds([EXAMPLES[0]])
    handle.remove()
    assert shapes == [len(vlm.response_ids("I'm sorry.")) + 1, 1]


def test_refusal_log_odds(vlm):
    odds = vlm.refusal_log_odds(EXAMPLES, batch_size=2)
    logits = vlm.forward(vlm.batch(EXAMPLES), logits_to_keep=1)[:, -1].double()
    p = logits.softmax(-1)[:, vlm.refusal_ids].sum(-1)
    np.testing.assert_allclose(odds, (p.log() - (1 - p).log()).numpy(), rtol=1e-4)
    first = {vlm.tokenizer.decode(token).strip() for token in vlm.refusal_ids}
    assert "I" in first and "" not in first


def test_refusal_ids_can_be_set():
    vlm = tiny.tiny_vlm()
    vlm.refusal_ids = [50]
    alone = vlm.refusal_log_odds(EXAMPLES[:2])
    vlm.refusal_ids = [50, 51]
    assert (vlm.refusal_log_odds(EXAMPLES[:2]) > alone).all()
    vlm.refusal_ids = []
    with pytest.raises(UsageError, match="refusal_ids"):
        vlm.refusal_log_odds(EXAMPLES)
