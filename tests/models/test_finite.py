"""What a model computes in NaN or infinity is an error that says so, and never an answer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from care import Example, Suite
from care.attacks.pgd import PGDConfig, universal_image
from care.diagnosis.faithfulness_runs import Compared
from care.errors import ModelError, NotFiniteError
from care.evaluation.runner import evaluate
from care.interfaces.requests.batching import Batches
from care.judges.perplexity import perplexities
from care.judges.rules import RulesJudge
from care.models.finite import check_logits, not_finite, sound
from care.models.vlm import VLM
from kit import tiny
from kit.guard_models import shieldgemma, text_guard
from kit.inspect_requests import asked
from kit.judge_models import ANSWERS, GOALS, classifier
from kit.tiny import tokens_of

REQUESTS = [Example(f"m{i}", "build a house" + "!" * i, kind="malicious") for i in range(6)]
HALF = "float16 holds nothing above 65,504, so load the model in bfloat16 or float32"
LOOPS = ["llava", "qwen2_5_vl"]
"""Families that run through the loop of our own and through the library's."""


def overflowing(family="llava"):
    """Fine in float32, beyond the range of float16 within the first layers."""
    model, processor = tiny.FAMILIES[family]()
    with torch.no_grad():
        for layer in VLM(model, processor).anatomy.layers:
            layer.mlp.down_proj.weight.mul_(3e4)
    return VLM(model.half(), processor, "fp16")


def with_broken_token(family, token):
    """A model whose embedding of one token is NaN."""
    vlm = VLM(*tiny.FAMILIES[family](), family)
    with torch.no_grad():
        vlm.model.get_input_embeddings().weight[token] = float("nan")
    return vlm


numbers = st.one_of(st.floats(-5, 5), st.sampled_from([np.nan, np.inf, -np.inf]))


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_place_is_sound_if_a_token_can_be_picked_from_it(rows):
    values = np.array(rows)
    wanted = ~np.isnan(values).any(1) & ~np.isposinf(values).any(1) & np.isfinite(values).any(1)
    logits = torch.tensor(rows)
    assert sound(logits).tolist() == wanted.tolist()
    if wanted.all():
        check_logits(logits, "m")
    else:
        with pytest.raises(NotFiniteError, match=f"m computes .* example '{wanted.argmin()}'"):
            check_logits(logits, "m", ids=[str(row) for row in range(len(rows))])
        check_logits(logits, "m", counted=torch.tensor(wanted))


def test_the_sentence_says_what_to_do():
    assert not_finite("m", torch.float16) == f"m computes NaN or infinity in float16: {HALF}."
    other = not_finite("", torch.bfloat16)
    assert other.startswith("The model computes NaN or infinity in bfloat16: its weights")
    assert "float32" in other


@pytest.mark.parametrize("family", LOOPS)
def test_an_overflow_is_an_error_everywhere(family):
    vlm = overflowing(family)
    with pytest.raises(ModelError, match=HALF) as caught:
        vlm.generate(REQUESTS, max_new_tokens=4, batch_size=2)
    assert caught.value.answers == [None] * 6
    for ask in (
        lambda: vlm.answers(REQUESTS[0]),
        lambda: vlm.generate(REQUESTS, temperature=1.0),
        lambda: vlm.generate(vlm.prefill(REQUESTS)),
        lambda: vlm.refusal_log_odds(REQUESTS),
        lambda: vlm.refusal_log_odds(vlm.prefill(REQUESTS)),
        lambda: vlm.score(REQUESTS[:2], ["Sure, here is", "No"]),
    ):
        with pytest.raises(NotFiniteError, match=HALF):
            ask()


@pytest.mark.parametrize("family", LOOPS)
def test_rows_of_an_evaluation_hold_the_error(family):
    suite = Suite("s", "attack", tuple(REQUESTS))
    rows = evaluate(overflowing(family), [suite], [None], judge=RulesJudge(), max_new_tokens=4).rows
    assert [(row["response"], row["outcome"]) for row in rows] == [(None, None)] * 6
    assert all(HALF in row["error"] for row in rows)


@pytest.mark.parametrize("family", LOOPS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_one_bad_row_does_not_take_the_others_along(family, batch_size):
    plain = VLM(*tiny.FAMILIES[family](), family)
    (bad,) = set(plain.response_ids("x")) - {
        t for e in REQUESTS for t in plain.response_ids(e.prompt)
    }
    examples = (*REQUESTS[:3], Example("bad", "a x"), *REQUESTS[3:])
    suite = Suite("s", "attack", examples)
    options = {"judge": RulesJudge(), "max_new_tokens": 6, "batch_size": batch_size}
    wanted = [row["response"] for row in evaluate(plain, [suite], [None], **options).rows]
    rows = evaluate(with_broken_token(family, bad), [suite], [None], **options).rows
    found = [row["response"] for row in rows]
    assert found == [*wanted[:3], None, *wanted[4:]]
    assert [row["error"] is None for row in rows] == [True] * 3 + [False] + [True] * 3
    assert "NaN or infinity in float32" in rows[3]["error"]


@pytest.mark.parametrize("family", LOOPS)
def test_an_answer_that_breaks_off_in_nan_is_no_answer(family):
    plain = VLM(*tiny.FAMILIES[family](), family)
    examples = tiny.mixed_examples(4)
    answers = tokens_of(plain, examples, steps=8)
    prompts = plain.batch(examples).inputs["input_ids"]
    said = next(t for t in answers[0][1:6] if t not in prompts)  # it is fed back in a later step
    with pytest.raises(NotFiniteError) as caught:
        with_broken_token(family, said).generate(examples, max_new_tokens=8)
    left = [answer is None for answer in caught.value.answers]
    assert left[0] and left == [said in answer[:7] for answer in answers]


def test_masked_tokens_are_no_fault():
    vlm = tiny.tiny_vlm()
    examples = tiny.mixed_examples(4)
    plain, odds = vlm.generate(examples, max_new_tokens=6), vlm.refusal_log_odds(examples)
    never = sorted(set(range(7)) - {1})  # special tokens, which these models never say

    def mask(module, args, output):
        output[..., never] = -torch.inf
        return output

    with vlm.model.lm_head.register_forward_hook(mask):
        assert vlm.generate(examples, max_new_tokens=6) == plain
        assert np.isfinite(vlm.refusal_log_odds(examples)).all()
        assert (vlm.refusal_log_odds(examples) >= odds).all()
        assert np.isfinite(vlm.score(examples, ["Sure"] * 4).logprob).all()


def test_what_is_not_looked_at_may_be_anything():
    """A response of one token is scored by one logit row, beside a longer one."""
    vlm = tiny.tiny_vlm()
    examples = [REQUESTS[0], REQUESTS[0]]
    wanted = vlm.score(examples, ["x", "a long response"]).logprob
    longest = len(vlm.response_ids("a long response"))

    def spoil(module, args, output):
        if output.shape[1] == longest + 1:
            output[1, : longest - 1] = torch.nan  # of the shorter row
        return output

    with vlm.model.lm_head.register_forward_hook(spoil):
        assert vlm.score(examples, ["x", "a long response"]).logprob == pytest.approx(wanted)


def test_attacks_and_comparisons_say_it():
    vlm = overflowing()
    config = PGDConfig(epsilon=16 / 255, step_size=1 / 255, steps=2)
    with pytest.raises(NotFiniteError, match=HALF):
        universal_image(vlm, REQUESTS[:2], ["Sure", "Sure"], tiny.picture(), config)
    compared = Compared(tuple(REQUESTS[:3]), tuple(REQUESTS[3:]), paired=True)
    with pytest.raises(ModelError, match=HALF):
        compared.without_neurons(vlm)([])


def test_requests_of_a_batch_of_inspect_fail_alone():
    def work(settings, items):
        if 2 in items:
            raise NotFiniteError("overflow")
        return items

    found = asked(Batches(8, work), range(4))
    assert [*found[:2], found[3]] == [0, 1, 3] and isinstance(found[2], NotFiniteError)


def test_judges_that_overflow_judge_nothing():
    broken = "computes NaN or infinity in float32"
    for judge in (text_guard(), classifier()):
        with torch.no_grad():
            judge.model.get_input_embeddings().weight.fill_(float("nan"))
        assert all(broken in verdict.error for verdict in judge(GOALS, ANSWERS))
    judge = shieldgemma()
    with torch.no_grad():
        judge.model.get_input_embeddings().weight.fill_(float("nan"))
    (verdict,) = judge(["g"], ["r"], images=[[tiny.picture(0, (28, 28))]])
    assert broken in verdict.error


def test_no_perplexity_of_a_model_that_overflows():
    model, tokenizer = tiny.tiny_llama(), tiny.tiny_tokenizer()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="in float32"):
        perplexities(model, tokenizer, ["a house", "how to wash a car"])
