"""Perplexity: by hand on a tiny random causal model, independent of batches, and at the edges."""

import math

import numpy as np
import pytest
import torch

from care.judges import perplexity
from care.judges.perplexity import perplexities
from kit.tiny import tiny_llama, tiny_tokenizer

TEXTS = [
    "To wash a car, you need soap.",
    "red",
    "The circle is red and the square is blue and the triangle is green.",
    "car soap a need To wash you",
]


@pytest.fixture(scope="module")
def model():
    return tiny_llama().eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@torch.no_grad()
def by_hand(model, tokenizer, text):
    """exp of the mean of −log p(token | tokens before it), one forward pass per prefix."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    losses = []
    for place in range(1, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        losses.append(-(logits[ids[place]] - torch.logsumexp(logits, 0)).item())
    return math.exp(sum(losses) / len(losses))


def test_is_exp_of_the_mean_negative_log_likelihood(model, tokenizer):
    expected = [by_hand(model, tokenizer, text) for text in TEXTS]
    got = perplexities(model, tokenizer, TEXTS)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert len({round(value, 3) for value in got}) == len(TEXTS)


def test_a_uniform_model_has_the_size_of_its_vocabulary(tokenizer):
    model = tiny_llama()
    model.lm_head.weight.data.zero_()
    np.testing.assert_allclose(
        perplexities(model, tokenizer, TEXTS), model.config.vocab_size, rtol=1e-4
    )


def test_neither_batch_nor_order_nor_repetition_matters(model, tokenizer, monkeypatch):
    together = perplexities(model, tokenizer, TEXTS)
    alone = np.concatenate([perplexities(model, tokenizer, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    order = [3, 0, 0, 2, 1, 3]
    monkeypatch.setattr(perplexity, "_BATCH", 2)
    got = perplexities(model, tokenizer, [TEXTS[i] for i in order])
    np.testing.assert_allclose(got, together[order], rtol=1e-4)


def test_the_same_text_is_scored_once(model, tokenizer):
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    perplexities(model, tokenizer, [TEXTS[0]] * 50)
    hook.remove()
    assert rows == [1]


def test_text_without_a_second_token_has_none(model, tokenizer):
    assert len(tokenizer("a", add_special_tokens=False)["input_ids"]) == 1
    got = perplexities(model, tokenizer, ["", TEXTS[0], "a"])
    assert np.isnan(got).tolist() == [True, False, True]
    assert np.isnan(perplexities(model, tokenizer, [""])).all()
    assert perplexities(model, tokenizer, []).shape == (0,)
