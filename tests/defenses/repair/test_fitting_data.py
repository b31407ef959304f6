"""Contrasts: who is in which class, what is pooled, and activations against a bare hook."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from care.data.example import Example
from care.defenses.activations import decisions, pool
from care.defenses.material import Material
from care.defenses.repair import fitting_data
from care.defenses.repair.fitting_data import Contrast, activations, contrast
from care.errors import FitError
from care.models.sites import Role, Site
from kit import tiny

SITES = [Site(1, "ffn_out"), Site(2, "layer_out"), Site(0, "ffn_neurons")]
ANSWERS = ["Sure, here is how.", "I'm sorry.", "To wash a car, you'll need water."]
PICTURES = [tiny.picture(i) for i in range(4)]


def asked(name, answer, *pictures):
    return Example(id=name, prompt=f"How do you build {name}?", images=pictures), answer


COMPLIED = (
    asked("a", "Sure A.", PICTURES[0]),
    asked("b", "Sure B."),
    asked("c", "Sure C.", PICTURES[0]),
)
REFUSED = (asked("d", "No D.", PICTURES[1]), asked("e", "No E."))
ANSWERED = (asked("f", "Yes F.", PICTURES[2]), asked("g", "Yes G.", PICTURES[3]))
MATERIAL = Material(COMPLIED, REFUSED, ANSWERED)


def ids(answered):
    return [(example.id, answer) for example, answer in answered]


# -- classes ---------------------------------------------------------------------------------------


def test_comply_rest_sets_attacks_that_worked_against_everything_else():
    chosen = contrast("comply-rest", MATERIAL)
    assert chosen.scope == "response"
    assert chosen.malicious == COMPLIED
    assert chosen.benign == REFUSED + ANSWERED


def test_comply_refuse_sets_both_answers_to_the_same_requests_against_each_other():
    chosen = contrast("comply-refuse", MATERIAL)
    assert chosen.scope == "response"
    assert ids(chosen.malicious) == [("a", "Sure A."), ("b", "Sure B."), ("c", "Sure C.")]
    assert ids(chosen.benign) == [("a", "No D."), ("b", "No E."), ("c", "No D.")]


def test_images_takes_every_picture_once_and_only_those():
    chosen = contrast("images", MATERIAL)
    assert chosen.scope == "image"
    assert [example.id for example, _ in chosen.malicious] == ["a", "d"]
    assert [example.id for example, _ in chosen.benign] == ["f", "g"]


def test_a_picture_counts_once_however_it_was_loaded(tmp_path):
    path = tmp_path / "same.png"
    PICTURES[0].save(path)
    again = [asked(n, "Sure.", p) for n, p in (("x", PICTURES[0].copy()), ("y", path))]
    turned = asked("z", "Sure.", PICTURES[0].transpose(Image.Transpose.TRANSPOSE))
    chosen = contrast("images", Material((*COMPLIED, *again, turned), REFUSED, ANSWERED))
    assert [example.id for example, _ in chosen.malicious] == ["a", "z", "d"]


@pytest.mark.parametrize("missing", ["complied", "refused", "answered"])
def test_material_names_the_class_that_is_missing(missing):
    classes = {"complied": COMPLIED, "refused": REFUSED, "answered": ANSWERED}
    with pytest.raises(FitError, match=missing):
        Material(**{**classes, missing: ()})


def test_a_contrast_names_the_class_that_is_missing():
    plain = (asked("x", "Yes."),)
    with pytest.raises(FitError, match=r"benign class .*image"):
        contrast("images", Material(COMPLIED, REFUSED, plain))
    with pytest.raises(FitError, match=r"malicious class .*image"):
        contrast("images", Material(plain, plain, ANSWERED))
    with pytest.raises(FitError, match="malicious"):
        Contrast((), plain, "response")


def test_an_unknown_contrast_is_refused():
    with pytest.raises(FitError, match=r"'everything'.*comply-rest"):
        contrast("everything", MATERIAL)  # pyright: ignore[reportArgumentType]


# -- pooling ---------------------------------------------------------------------------------------


def pooled_by_hand(h, roles, scope):
    """The oracle: one row and one position at a time."""
    wanted = {"image": Role.IMAGE, "text": Role.TEXT, "response": Role.RESPONSE}
    rows = []
    for values, row in zip(h.tolist(), roles.tolist(), strict=True):
        taken = []
        for place, role in enumerate(row):
            prompt = role in (Role.TEXT, Role.IMAGE)
            decides = prompt and (place + 1 == len(row) or row[place + 1] == Role.RESPONSE)
            if decides if scope == "decision" else role == wanted[scope]:
                taken.append(values[place])
        rows.append(np.mean(taken, axis=0))
    return torch.tensor(np.array(rows))


@given(
    counts=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4
    ),
    scope=st.sampled_from(["image", "text", "decision", "response"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_pooling_is_the_mean_over_the_scope(counts, scope, dtype, seed):
    width = max(map(sum, counts)) + 1
    roles = torch.zeros(len(counts), width, dtype=torch.long)
    for row, (images, texts, answers) in enumerate(counts):
        filled = [Role.IMAGE] * images + [Role.TEXT] * texts + [Role.RESPONSE] * answers
        roles[row, width - len(filled) :] = torch.tensor(filled)
    h = torch.randn(*roles.shape, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before = roles.clone()
    pooled = pool(h, roles, scope)
    assert pooled.dtype == torch.float32 and torch.equal(roles, before)
    expected = pooled_by_hand(h.double(), roles, scope)
    torch.testing.assert_close(pooled.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_decision_is_the_last_position_of_the_prompt_with_and_without_an_answer():
    asked_, answered_ = [Role.IMAGE, Role.TEXT, Role.TEXT], [Role.RESPONSE, Role.RESPONSE]
    roles = torch.tensor([[Role.PAD, *asked_, *answered_], [Role.PAD] * 3 + asked_])
    h = torch.arange(6.0)[None, :, None].expand(2, -1, -1)
    assert pool(h, roles, "decision").flatten().tolist() == [3.0, 5.0]
    assert pool(h[:1], roles[:1], "response").item() == 4.5
    assert pool(h, roles, "text").flatten().tolist() == [2.5, 4.5]
    assert pool(h, roles, "image").flatten().tolist() == [1.0, 3.0]


def test_decisions_of_read_prompts_are_those_of_whole_ones_before_an_opening():
    vlm = tiny.tiny_vlm()
    plain = tiny.mixed_examples(4)
    begun = [replace(e, opening="Sure, here" if i % 2 else "") for i, e in enumerate(plain)]
    site = Site(1, "ffn_out")
    for examples in (plain, begun):
        found = decisions(vlm, vlm.prefill(examples), [site])[site]
        expected = activations(vlm, [(e, "") for e in plain], [site], "decision")[site]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_example_without_a_token_in_scope_is_refused():
    roles = torch.tensor([[Role.IMAGE, Role.TEXT], [Role.TEXT, Role.TEXT]])
    with pytest.raises(FitError, match="image"):
        pool(torch.zeros(2, 2, 3), roles, "image")
    with pytest.raises(FitError, match="response"):
        pool(torch.zeros(2, 2, 3), roles, "response")


# -- activations -----------------------------------------------------------------------------------


def by_bare_hook(vlm, answered, scope):
    """Pooled outputs of layer 1's MLP, one example at a time."""
    seen, rows = [], []
    mlp = vlm.model.get_decoder().layers[1].mlp
    handle = mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    for example, answer in answered:
        batch = vlm.batch([example], [answer])
        vlm.forward(batch)
        rows.append(pooled_by_hand(seen.pop().double(), batch.roles, scope)[0])
    handle.remove()
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("scope", ["image", "text", "decision", "response"])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_activations_come_in_order_and_do_not_depend_on_batches(vlm, scope, batch_size):
    examples = tiny.mixed_examples(7)
    if scope == "image":
        examples = [example for example in examples if example.images]
    answered = [(example, ANSWERS[i % 3]) for i, example in enumerate(examples)]
    found = activations(vlm, answered, SITES, scope, batch_size)
    assert list(found) == SITES
    for site, rows in found.items():
        assert rows.shape == (len(answered), vlm.anatomy.site_width(site))
        assert rows.dtype == np.float32
    expected = by_bare_hook(vlm, answered, scope)
    np.testing.assert_allclose(found[SITES[0]], expected, atol=1e-4, rtol=1e-4)


def test_image_activations_do_not_depend_on_the_question(vlm):
    example = Example(id="x", prompt="Describe the image.", images=(PICTURES[0],))
    other = Example(id="y", prompt="How do you build a small house?", images=(PICTURES[0],))
    one, two = (
        activations(vlm, [(asked_, answer)], SITES, "image")
        for asked_, answer in ((example, "Sure."), (other, "I'm sorry, but I can't."))
    )
    for site in SITES:
        np.testing.assert_allclose(one[site], two[site], atol=1e-5)


# -- moments ---------------------------------------------------------------------------------------


def test_moments_are_those_of_all_rows_and_few_are_held_at_once(vlm, monkeypatch):
    part = [*COMPLIED, *REFUSED, *ANSWERED]
    whole = activations(vlm, part, SITES, "text", 4)
    sizes = []

    def counted(vlm, some, *more):
        sizes.append(len(some))
        return activations(vlm, some, *more)

    monkeypatch.setattr(fitting_data, "activations", counted)
    in_one = fitting_data.moments_of(vlm, part, SITES, "text", 4)
    monkeypatch.setattr(fitting_data, "AT_ONCE", 3)
    in_parts = fitting_data.moments_of(vlm, part, SITES, "text", 4)
    assert sizes == [7, 3, 3, 1]
    for site, rows in whole.items():
        np.testing.assert_array_equal(in_one[site].rows_, rows.astype(np.float64))
        np.testing.assert_allclose(in_parts[site].rows_, rows, atol=1e-5)
