"""The first tokens of refusals are those that the model says after its prompt, or it is told."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from care import Example
from care.models.loading import first_tokens
from care.models.openers import REFUSAL_OPENERS
from care.models.vlm import VLM
from kit import tiny

WORDS = (*REFUSAL_OPENERS, "am", "assistant", "user", "ping", "Wash", "house")


def marking(more=()):
    """A tokenizer that marks the beginnings of words, as Llama's does."""
    pieces = [("<unk>", 0.0), ("<pad>", -9.0), ("<image>", -9.0), ("\n", -1.0), ("▁", -3.0)]
    pieces += [(mark + word, -1.0) for word in WORDS for mark in ("▁", "")]
    pieces += [(piece, -0.5) for piece in more]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
    )


def marked_vlm(end, more=()):
    """A LLaVA whose tokenizer marks beginnings, and whose template ends in `end`."""
    model, processor = tiny.tiny_llava()
    processor.tokenizer = marking(more)
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    parts = "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    processor.chat_template = (
        "{% for m in messages %}user\n{% for c in m['content'] %}" + parts + "{% endfor %}\n"
        "{% endfor %}{% if add_generation_prompt %}" + end + "{% endif %}"
    )
    return VLM(model, processor, "marked")


def saying(vlm, token):
    """While open, the model is sure to begin its answers with this token."""

    def sure(module, args, output):
        output[...] = 0.0
        output[..., token] = 20.0
        return output

    return vlm.model.lm_head.register_forward_hook(sure)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("assistant\n", ["I", "Sorry", "As", "Unfortunately"]),
        ("assistant", ["▁I", "▁Sorry", "▁As", "▁Unfortunately"]),
        ("assistant ", ["I", "Sorry", "As", "Unfortunately"]),
        ("assistant\n\n", ["I", "Sorry"]),
    ],
)
def test_what_a_model_says_after_its_prompt_is_counted(end, said):
    vlm = marked_vlm(end)
    for token in said:
        assert vlm.tokenizer.convert_tokens_to_ids(token) in vlm.refusal_ids
    space = vlm.tokenizer.convert_tokens_to_ids("▁")
    assert space not in vlm.refusal_ids and vlm.tokenizer.unk_token_id not in vlm.refusal_ids
    read = {vlm.tokenizer.decode([token]).strip() for token in vlm.refusal_ids}
    assert read == set(REFUSAL_OPENERS)


def test_a_certain_refusal_after_a_new_line_has_high_log_odds():
    vlm = marked_vlm("assistant\n")
    (first,) = vlm.tokenizer.convert_tokens_to_ids(["I"])
    with saying(vlm, first), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vlm.refusal_log_odds([Example("a", "Wash house")])[0] > 10


def test_words_that_only_their_pieces_are_tokens_of():
    tokenizer = marking()
    (token,) = tokenizer.convert_tokens_to_ids(["As"])
    assert token in first_tokens(tokenizer, ["Assistant"], "user ")  # no token is longer
    assert first_tokens(tokenizer, ["zzz"], "user\n") == []


@pytest.mark.parametrize("more", ["I'm", "▁I'm", "▁sorry", "As,"])
def test_other_tokens_that_read_like_a_refusal_are_warned_of_once(more):
    vlm = marked_vlm("assistant\n", [more])
    (token,) = vlm.tokenizer.convert_tokens_to_ids([more])
    assert token not in vlm.refusal_ids
    asked = [Example("a", "Wash house"), Example("b", "house")]
    with saying(vlm, token):
        with pytest.warns(UserWarning, match=f"marked begins answers with .*token {token}"):
            vlm.refusal_log_odds(asked)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            vlm.refusal_log_odds(asked)
            vlm.log_odds(torch.zeros(2, 60))


def test_nothing_is_said_of_tokens_that_are_counted_chosen_or_unlikely():
    vlm = marked_vlm("assistant\n", ["I'm", "Iron"])
    odd, other = vlm.tokenizer.convert_tokens_to_ids(["I'm", "Iron"])
    logits = torch.zeros(1, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits[0, other] = 20.0  # another word
        vlm.log_odds(logits)
        logits[0, odd] = 17.0  # 5 %
        vlm.log_odds(logits)
        logits[0, odd] = 30.0
        found, vlm.refusal_ids = vlm.refusal_ids, [odd]
        vlm.log_odds(logits)
        vlm.refusal_ids = [*found, odd]
        vlm.log_odds(logits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_byte_level_tokenizers_count_what_they_did(family):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    assert vlm.refusal_ids == first_tokens(vlm.tokenizer, REFUSAL_OPENERS)


@given(st.text(alphabet="aI \n:▁", max_size=8), st.sampled_from(REFUSAL_OPENERS))
def test_a_first_token_goes_on_with_the_prompt(prompt, opener):
    """Whatever the border, each token reads like the beginning of the opener."""
    tokenizer = marking()
    for token in first_tokens(tokenizer, [opener], prompt):
        assert opener.startswith(tokenizer.decode([token]).strip()[: len(opener)])


@pytest.mark.embedded
def test_those_of_the_embedded_model(embedded_vlm):
    tokens = embedded_vlm.tokenizer.convert_ids_to_tokens(embedded_vlm.refusal_ids)
    assert tokens == ["I", "ĠI", "ĠAs", "As", "ĠUnfortunately", "Unfortunately", "ĠSor", "Sorry"]
