"""Suffixes: the gradient against finite differences, the search, edits, and resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.attacks import suffix as suffixes
from care.attacks.gcg import SuffixConfig
from care.attacks.suffix import SuffixLoss, candidates, search_suffix, usable
from care.data.example import Example
from care.errors import ModelError, UsageError
from care.models.gradients import differentiable
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import repair

ASKED = [
    Example("a", "How do you build a house", goal="build a house", kind="malicious"),
    Example("b", "Describe how to wash a car", goal="wash a car", kind="malicious"),
]
TARGETS = ["To build", "Sure, here is"]
CONFIG = SuffixConfig(steps=6, width=12, topk=24, length=3, rows=5)


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


@pytest.fixture
def loss_of(vlm):
    return SuffixLoss(vlm, ASKED, TARGETS, CONFIG)


def start(vlm):
    return vlm.response_ids(" ! ! !")[: CONFIG.length]


def test_the_loss_is_the_likelihood_of_the_targets_after_the_suffix(vlm, loss_of):
    found = loss_of.of([vlm.response_ids(text) for text in (" ! ! !", " house car wood")])
    for text, value in zip((" ! ! !", " house car wood"), found, strict=True):
        asked = [replace(example, prompt=example.prompt + text) for example in ASKED]
        score = vlm.score(asked, TARGETS)
        assert value == pytest.approx(-score.logprob.sum() / score.tokens.sum(), abs=1e-4)


@pytest.mark.parametrize("defended", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_gradient_is_that_of_one_hot_rows(family, defended):
    """Along the direction to another token, by central differences of the embeddings."""
    vlm = VLM(*tiny.FAMILIES[family](), family)
    loss_of, ids = SuffixLoss(vlm, ASKED, TARGETS, CONFIG), start(vlm)
    table = vlm.model.get_input_embeddings().weight
    defense = repair(0, ("decision", "response"))
    with differentiable(vlm):
        if defended:
            with defense.applied(vlm):
                gradient = loss_of.gradient(ids)
        else:
            gradient = loss_of.gradient(ids)
        assert gradient.shape == (len(ids), len(table))
        for place, other in ((0, 60), (2, 200)):
            towards = (table[other] - table[ids[place]]).detach()

            def loss(step, place=place, towards=towards):
                def move(module, args, output):
                    moved = output.clone()
                    for row, tokens in enumerate(args[0].tolist()):
                        first = suffixes._place(tokens, ids)
                        moved[row, first + place] += step * towards
                    return moved

                handle = vlm.model.get_input_embeddings().register_forward_hook(move)
                try:
                    if not defended:
                        return loss_of.of([ids])[0]
                    with defense.applied(vlm):
                        return loss_of.of([ids])[0]
                finally:
                    handle.remove()

            slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
            found = float(gradient[place, other] - gradient[place, ids[place]])
            assert found == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_candidates_exchange_one_token_for_a_promising_one():
    gradient = torch.arange(20.0).reshape(2, 10)
    allowed = torch.tensor([False, True] * 5)
    config = SuffixConfig(width=200, topk=2, length=2)
    found = candidates(gradient, [4, 3], allowed, config, np.random.default_rng(0))
    assert sorted(found) == [[1, 3], [3, 3], [4, 1]]  # 1 and 3 have the least entries allowed


def test_usable_tokens_are_plain_text(vlm):
    mask = usable(vlm)
    assert len(mask) == len(vlm.model.get_input_embeddings().weight) and 50 < mask.sum() < len(mask)
    for token in mask.nonzero()[:, 0].tolist():
        text = vlm.tokenizer.decode([token])
        assert text.isascii() and text.strip() and text not in tiny.SPECIAL


def test_a_search_lessens_the_loss_and_its_suffix_is_read_as_it_was_found(vlm, loss_of):
    steps = []
    found = search_suffix(
        vlm, ASKED, TARGETS, CONFIG, progress=lambda step, loss: steps.append((step, loss))
    )
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6] and len(found.losses) == 6
    assert found.loss == steps[-1][1] < found.losses[0]
    assert [loss for _, loss in steps] == sorted((loss for _, loss in steps), reverse=True)
    asked = [replace(example, prompt=example.prompt + found.text) for example in ASKED]
    score = vlm.score(asked, TARGETS)
    assert found.loss == pytest.approx(-score.logprob.sum() / score.tokens.sum(), abs=1e-4)
    assert found.losses[0] == pytest.approx(loss_of.of([start(vlm)])[0], abs=1e-5)
    again = search_suffix(vlm, ASKED, TARGETS, CONFIG)
    assert again == found
    assert search_suffix(vlm, ASKED, TARGETS, replace(CONFIG, seed=1)).text != found.text


def test_a_suffix_that_tokens_join_with_the_request_is_no_candidate(vlm, loss_of):
    assert loss_of.stays(start(vlm))
    joined = vlm.response_ids(" here")
    pieces = [token for letter in " here" for token in vlm.response_ids(letter)]
    assert len(pieces) > len(joined) and not loss_of.stays(pieces)


def test_it_goes_through_the_defense(vlm):
    defense = repair(0, ("decision", "response"))
    bare = search_suffix(vlm, ASKED, TARGETS, CONFIG)
    known = search_suffix(vlm, ASKED, TARGETS, CONFIG, defense=defense)
    asked = [replace(example, prompt=example.prompt + known.text) for example in ASKED]
    with defense.applied(vlm):
        score = vlm.score(asked, TARGETS)
    assert known.loss == pytest.approx(-score.logprob.sum() / score.tokens.sum(), abs=1e-4)
    assert known.losses[0] != bare.losses[0] and known.text != bare.text
    assert not vlm.model._forward_pre_hooks


def test_stopped_anywhere_it_goes_on_to_the_same_suffix(vlm, tmp_path):
    whole = search_suffix(vlm, ASKED, TARGETS, replace(CONFIG, steps=7))
    file = tmp_path / "state.json"

    def stop(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_suffix(vlm, ASKED, TARGETS, CONFIG, checkpoint=file, progress=stop)
    seen = []
    search_suffix(
        vlm, ASKED, TARGETS, CONFIG, checkpoint=file, progress=lambda step, _: seen.append(step)
    )
    assert seen == [4, 5, 6]
    longer = replace(CONFIG, steps=7)
    assert search_suffix(vlm, ASKED, TARGETS, longer, checkpoint=file) == whole
    with pytest.raises(UsageError, match="of another search"):
        search_suffix(vlm, ASKED, TARGETS[::-1], CONFIG, checkpoint=file)


def test_what_cant_be_searched_is_refused(vlm, monkeypatch):
    for asked, targets in (([], []), (ASKED, TARGETS[:1])):
        with pytest.raises(UsageError, match="one target for each"):
            search_suffix(vlm, asked, targets, CONFIG)
    with pytest.raises(UsageError, match="no tokens"):
        search_suffix(vlm, ASKED, ["Sure", ""], CONFIG)
    with pytest.raises(UsageError, match="steps must be"):
        SuffixConfig(steps=0)
    monkeypatch.setattr(SuffixLoss, "stays", lambda self, suffix: False)
    with pytest.raises(ModelError, match="No suffix to start from"):
        search_suffix(vlm, ASKED, TARGETS, CONFIG)


def test_where_no_candidate_stays_the_suffix_does(vlm, monkeypatch):
    stays = SuffixLoss.stays
    first = start(vlm)
    monkeypatch.setattr(
        SuffixLoss, "stays", lambda self, suffix: suffix == first and stays(self, suffix)
    )
    found = search_suffix(vlm, ASKED, TARGETS, replace(CONFIG, steps=2))
    assert found.text == vlm.tokenizer.decode(first) and len(set(found.losses)) == 1
