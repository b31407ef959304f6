"""Answers that a gated edit of the decision leaves alone, and that nobody decodes again."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from care.data.example import Suite
from care.evaluation.runner import evaluate
from care.judges.rules import RulesJudge
from care.models import changed as of_changes
from care.models.changed import changed_rows
from care.models.hooks import read
from care.models.prompt_cache import first_logits
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import FULLY_OPEN, SHUT, SITES, a_gate, repair

EXAMPLES = [
    replace(example, opening="x y" if place in (2, 5) else "")
    for place, example in enumerate(tiny.mixed_examples(8))
]
OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def llava():
    return tiny.tiny_vlm()


def gates_of(vlm, thresholds, seed=0, sites=SITES):
    """A repair of random directions with gates that open in some of the rows."""
    drawn = repair(seed, sites=sites)
    channels = []
    for place, channel in enumerate(drawn.channels):
        gate = a_gate(seed=seed + place, thresholds=thresholds)
        if thresholds is None:  # in the middle of the scores that the model's activations have
            with read(vlm, [channel.site]) as recorder:
                for _, start in vlm.prefill(EXAMPLES, batch_size=8).parts:
                    first_logits(vlm.model, vlm.roles, start)
                rows = recorder.rows(channel.site, ("decision",)).float().numpy()
            scores = (rows - gate.mean) @ gate.filters
            low = np.quantile(scores, 0.7, axis=0).astype(np.float32)
            gate = replace(gate, low=low, high=low + np.float32(0.5))
        channels.append(replace(channel, gate=gate))
    return replace(drawn, channels=tuple(channels), name=f"gated {seed}")


@pytest.mark.slow
@given(
    st.sampled_from([None, SHUT, FULLY_OPEN]), st.integers(0, 3), st.integers(1, 8), st.booleans()
)
def test_answers_are_those_of_decoding_everything(llava, thresholds, seed, size, one_site):
    """Whatever gates are open, however prompts are batched and padded, and whatever comes after."""
    sites = SITES[1:2] if one_site else SITES
    gated = gates_of(llava, thresholds, seed, sites)
    prompts = llava.prefill(EXAMPLES, batch_size=size)
    changed = gated.changed(llava, prompts)
    bare = llava.generate(EXAMPLES, batch_size=size, **OPTIONS)
    with gated.applied(llava):
        whole = llava.generate(EXAMPLES, batch_size=size, **OPTIONS)
        some = llava.generate(prompts.only(np.flatnonzero(changed).tolist()), **OPTIONS)
    found = list(bare)
    for place, text in zip(np.flatnonzero(changed), some, strict=True):
        found[place] = text
    assert found == whole
    if thresholds is SHUT:
        assert not changed.any()
    if thresholds is FULLY_OPEN:
        assert changed.all()


def test_some_gates_open_and_others_do_not(llava):
    """Else the property above says nothing of the rows between."""
    changed = gates_of(llava, None).changed(llava, llava.prefill(EXAMPLES))
    assert 0 < changed.sum() < len(EXAMPLES)


def test_a_gate_that_another_edit_opens_counts(llava):
    """The later site is edited only because the earlier one was."""
    first, later = gates_of(llava, None, 0, SITES[:1]), gates_of(llava, SHUT, 1, SITES[1:])
    both = replace(first, channels=first.channels + later.channels)
    prompts = llava.prefill(EXAMPLES)
    assert (both.changed(llava, prompts) == first.changed(llava, prompts)).all()


def test_logits_of_unchanged_rows_are_the_same_to_the_bit(llava):
    gated, prompts = gates_of(llava, None), llava.prefill(EXAMPLES)
    changed = gated.changed(llava, prompts)
    for indices, start in prompts.parts:
        bare = first_logits(llava.model, llava.roles, start)
        with gated.applied(llava):
            under = first_logits(llava.model, llava.roles, start)
        same = (bare == under).all(dim=1).numpy()
        assert (same == ~changed[indices]).all()


def test_edits_that_go_on_in_the_answer_or_have_no_gate_may_change_anything(llava):
    prompts = llava.prefill(EXAMPLES)
    assert repair().changed(llava, prompts) is None
    later = [replace(c, scopes=("decision", "response")) for c in gates_of(llava, SHUT).channels]
    assert replace(repair(), channels=tuple(later)).changed(llava, prompts) is None


def test_what_does_not_fit_into_memory_counts_as_changed(llava, monkeypatch):
    prompts, shut = llava.prefill(EXAMPLES), gates_of(llava, SHUT)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(of_changes, "first_logits", full)
    with pytest.raises(RuntimeError, match="other"):
        monkeypatch.setattr(of_changes, "first_logits", partial(_raise, RuntimeError("other")))
        shut.changed(llava, prompts)
    monkeypatch.setattr(of_changes, "first_logits", full)
    sites = [Site(1, "layer_out")]
    assert changed_rows(llava, prompts, sites, shut.applied(llava)).all()


def _raise(error, *_):
    raise error


# -- some of the prompts that were read ----------------------------------------------------------


def test_some_prompts_are_answered_as_all_are(llava):
    prompts = llava.prefill(EXAMPLES, batch_size=3)
    whole = llava.generate(prompts, **OPTIONS)
    for places in ([0], [6, 1, 4], list(range(8))[::-1]):
        some = prompts.only(places)
        assert some.examples == [EXAMPLES[place] for place in places]
        assert llava.generate(some, **OPTIONS) == [whole[place] for place in places]


def test_prompts_that_were_not_read_ahead_are_read_anew():
    vlm = VLM(*tiny.FAMILIES["qwen2_5_vl"](), "qwen")
    assert vlm.prefill(EXAMPLES[:2]).only([1]) == EXAMPLES[1:2]


# -- evaluation ----------------------------------------------------------------------------------


def test_an_evaluation_decodes_only_what_is_changed(llava, monkeypatch):
    suite = Suite("chat", "utility", tuple(tiny.mixed_examples(8)))
    shut, mixed = gates_of(llava, SHUT, 1), gates_of(llava, None, 0)
    decoded = []
    answers = VLM.answers

    def counting(vlm, asked, **how):
        decoded.append(len(asked.examples) if hasattr(asked, "parts") else len(asked))
        return answers(vlm, asked, **how)

    monkeypatch.setattr(VLM, "answers", counting)

    def rows(*defenses, **options):
        decoded.clear()
        how = {"judge": RulesJudge(), "max_new_tokens": 6, "batch_size": 3} | options
        table = evaluate(llava, [suite], defenses, **how)
        return {name: [r["response"] for r in table.rows if r["defense"] == name]
                for name in table.defenses}  # fmt: skip

    together = rows(mixed, shut, None)  # the bare model is asked first, wherever it stands
    assert 8 < sum(decoded) < 16
    assert together["gated 1"] == together["none"]
    for defense in (mixed, shut, None):
        alone = rows(defense)
        assert sum(decoded) == 8
        assert next(iter(alone.values())) == together[defense.name if defense else "none"]
    drawn = rows(None, shut, temperature=1.0)
    assert sum(decoded) == 8 and drawn["none"] == drawn["gated 1"]


def test_drawn_answers_to_repeated_requests_are_all_drawn(llava, monkeypatch):
    """How often a request came before decides what is drawn, so no part of a batch is left out."""
    same = tiny.mixed_examples(2)[0]
    suite = Suite("chat", "utility", (same, replace(same, id="again")))
    table = evaluate(
        llava,
        [suite],
        [None, gates_of(llava, FULLY_OPEN)],
        judge=RulesJudge(),
        max_new_tokens=6,
        temperature=1.0,
    )
    with gates_of(llava, FULLY_OPEN).applied(llava):
        expected = llava.generate(list(suite), max_new_tokens=6, temperature=1.0)
    assert [row["response"] for row in table.rows if row["defense"] != "none"] == expected
