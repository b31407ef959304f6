"""Ablations from donors: resampled and paired activations stand where they belong."""

import pytest
import torch

from care.data.example import Example
from care.diagnosis.ablation import ablate
from care.errors import UsageError
from care.models.alignment import align
from care.models.hooks import read
from care.models.sites import Role, Site
from kit import tiny
from kit.tiny import captured

EXAMPLES = tiny.mixed_examples(5)
KINDS = [Site(2, kind) for kind in ("ffn_out", "mhsa_out", "layer_out", "ffn_neurons")]
FFN, _, LAYER, _ = KINDS


@pytest.fixture(scope="module")
def vlm():
    return tiny.tiny_vlm()


@pytest.fixture(scope="module")
def batch(vlm):
    return vlm.batch(EXAMPLES, ["I'm sorry."] * len(EXAMPLES))


# -- resampling ------------------------------------------------------------------------------------


def test_resampling_from_the_same_batch(vlm):
    """Same prompts, other images: row b gets the image activations of row b − 1, place by place."""
    prompts = [Example(str(i), "What is it?", images=(tiny.picture(i),)) for i in range(3)]
    batch = vlm.batch(prompts)
    plain = captured(vlm, batch, [FFN])[FFN]
    with ablate(vlm, [FFN], "resample", scopes=["image"]) as stats:
        h = captured(vlm, batch, [FFN])[FFN]
    image = batch.roles == Role.IMAGE
    assert torch.equal(h[image], plain.roll(1, 0)[image])
    assert torch.equal(h[~image], plain[~image])
    assert stats.tokens == int(image.sum())


def test_resampling_from_donors_of_other_length(vlm, batch):
    """Prompts are matched from their end, answers from their start; longer ones wrap around."""
    donor = vlm.batch(Example("d", "How?", images=(tiny.picture(8),)), "I'm sorry, but")
    with read(vlm, [FFN]) as recorder:
        vlm.forward(donor)
    with ablate(vlm, [FFN], "resample", donors=recorder):
        h = captured(vlm, batch, [FFN])[FFN]
    source, roles = recorder[FFN]
    for row in range(len(batch)):
        for role, place in ((Role.TEXT, -1), (Role.IMAGE, -1), (Role.RESPONSE, 0)):
            mine, theirs = h[row][batch.roles[row] == role], source[0][roles[0] == role]
            order = range(len(mine)) if place == 0 else range(-1, -len(mine) - 1, -1)
            for count, index in enumerate(order):
                match = count % len(theirs)
                expected = theirs[match] if place == 0 else theirs[-1 - match]
                assert torch.equal(mine[index], expected)


def test_resampling_itself_changes_nothing(vlm, batch):
    before = vlm.forward(batch, logits_to_keep=1)
    with read(vlm, KINDS) as recorder:
        vlm.forward(batch)
    with ablate(vlm, KINDS, "resample", donors=recorder) as stats:
        assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)
    assert stats.tokens == 0


def answering_donors(vlm):
    """A recorder of one answered prompt, and what it holds at the answer's tokens (t, D)."""
    with read(vlm, [FFN]) as recorder:
        vlm.forward(vlm.batch([EXAMPLES[1]], ["To wash a car"]))
    donors, roles = recorder[FFN]
    return recorder, donors[0][roles[0] == Role.RESPONSE]


def test_resampling_follows_the_answer_while_decoding(vlm):
    """Donor answers are taken position by position; a donor without an answer changes nothing."""
    example = EXAMPLES[1]
    recorder, expected = answering_donors(vlm)
    seen = []
    with (
        ablate(vlm, [FFN], "resample", donors=recorder, scopes=["response"]),
        read(vlm, [FFN], sink=lambda site, h, roles: seen.append(h)),
    ):
        vlm.generate(example, max_new_tokens=4)
    for step, h in enumerate(seen[1:]):
        assert torch.equal(h[0, 0], expected[step % len(expected)])
    with read(vlm, [FFN]) as prompt_only:
        vlm.forward(vlm.batch(example))
    with ablate(vlm, [FFN], "resample", donors=prompt_only, scopes=["response"]) as stats:
        answers = vlm.generate(example, max_new_tokens=4)
    assert answers == vlm.generate(example, max_new_tokens=4) and stats.tokens == 0


def test_resampling_counts_answer_tokens_of_prompts_that_were_read_before(vlm):
    """Batch after batch, the last position of a prompt counts for nothing."""
    reading = vlm.prefill([EXAMPLES[1], EXAMPLES[1]], batch_size=1)
    recorder, expected = answering_donors(vlm)
    seen = []
    with (
        ablate(vlm, [FFN], "resample", donors=recorder, scopes=["response"]),
        read(vlm, [FFN], sink=lambda site, h, roles: seen.append(h)),
    ):
        vlm.generate(reading, max_new_tokens=4)
    assert len(seen) == 8  # 2 prompts, 4 passes each, of which the first reads the prompt's end
    for start in (0, 4):
        for step, h in enumerate(seen[start + 1 : start + 4]):
            assert torch.equal(h[0, 0], expected[step % len(expected)])


def test_donors_that_do_not_fit_are_refused(vlm, batch):
    with pytest.raises(UsageError, match="no other row"), ablate(vlm, [FFN], "resample"):
        vlm.forward(vlm.batch(EXAMPLES[0]))
    donors = {FFN: (torch.zeros(1, 3, 7), torch.ones(1, 3, dtype=torch.long))}
    with pytest.raises(UsageError, match="width 7"), ablate(vlm, [FFN], "resample", donors=donors):
        vlm.forward(batch)


# -- pairs -----------------------------------------------------------------------------------------


def test_a_pair_gives_what_stands_at_the_same_place(vlm):
    here, there = vlm.batch(EXAMPLES[1:3]), vlm.batch([EXAMPLES[3], EXAMPLES[0]])
    for site in KINDS:
        with read(vlm, [site]) as recorder:
            vlm.forward(there)
        plain = captured(vlm, here, [site])[site]
        with ablate(vlm, [site], "paired", donors=recorder):
            found = captured(vlm, here, [site])[site]
        index, has = align(here.roles, there.roles)
        for row in range(2):
            for place in range(here.roles.shape[1]):
                donor = recorder[site][0][row, index[row, place]]
                expected = donor if has[row, place] else plain[row, place]
                if here.roles[row, place] != Role.PAD:
                    assert torch.equal(found[row, place], expected)


def test_a_run_paired_with_itself_is_unchanged(vlm, batch):
    before = vlm.forward(batch, logits_to_keep=1)
    with read(vlm, [FFN, LAYER]) as recorder:
        vlm.forward(batch)
    with ablate(vlm, [FFN, LAYER], "paired", donors=recorder) as stats:
        assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)
    assert stats.tokens == 0


def test_pairs_that_dont_fit_are_refused(vlm, batch):
    with read(vlm, [FFN]) as recorder:
        vlm.forward(vlm.batch(EXAMPLES[:2]))
    message = "doesn't fit 5 rows"
    with pytest.raises(UsageError, match=message), ablate(vlm, [FFN], "paired", donors=recorder):
        vlm.forward(batch)
    with read(vlm, [FFN]) as recorder:
        vlm.forward(vlm.batch(EXAMPLES[1]))
    message = "no counterpart of generated"
    with pytest.raises(UsageError, match=message), ablate(vlm, [FFN], "paired", donors=recorder):
        vlm.generate(EXAMPLES[1], max_new_tokens=2)
