"""Sites: their names, roles, and the positions in scope."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from care.errors import SiteError
from care.models.sites import Role, Site, roles_of_inputs, scope_mask
from kit import tiny
from kit.refusals import refused

IMAGE = tiny.SPECIAL.index("<image>")


@given(st.integers(0, 200), st.sampled_from(["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"]))
def test_site_text_round_trip(layer, kind):
    site = Site(layer, kind)
    assert Site.parse(str(site)) == site


def test_sites_sort_by_layer_then_kind():
    sites = [Site(10, "ffn_out"), Site(2, "mhsa_out"), Site(2, "ffn_out")]
    assert [str(site) for site in sorted(sites)] == ["2.ffn_out", "2.mhsa_out", "10.ffn_out"]


@pytest.mark.parametrize("text", ["", "ffn_out", "16", "16.", "x.ffn_out", "-1.ffn_out", "1.mlp"])
def test_malformed_sites_are_refused(text):
    with refused(SiteError, "."):
        Site.parse(text)


@pytest.mark.parametrize("layer", [-1, 1.0, True, "3"])
def test_a_layer_is_a_non_negative_integer(layer):
    with pytest.raises(SiteError, match="layer index"):
        Site(layer, "ffn_out")


def test_scope_masks():
    roles = torch.tensor([[0, 1, 2, 2, 1, 3]])
    assert scope_mask(roles, ["image"]).tolist() == [[False, False, True, True, False, False]]
    assert scope_mask(roles, ["text", "response"]).sum() == 3
    assert scope_mask(roles, ["all", "image"]).sum() == 5
    assert torch.equal(scope_mask(roles, "image"), scope_mask(roles, ["image"]))
    for wrong in ([], ["images"]):
        with refused(SiteError, "Scope"):
            scope_mask(roles, wrong)


def test_the_decision_is_the_last_position_before_the_answer():
    pad, text, image, response = 0, 1, 2, 3
    roles = torch.tensor([[pad, text, image, text], [text, text, response, response]])
    places = scope_mask(roles, ["decision"]).nonzero().tolist()
    assert places == [[0, 3], [1, 1]]
    # One position at a time: the end of a prompt is a decision, an answer's token isn't.
    step = torch.tensor([[text], [response], [pad], [image]])
    assert scope_mask(step, ["decision"]).flatten().tolist() == [True, False, False, True]


def test_roles_in_prefill_and_decode():
    ids = torch.tensor([[0, 0, 9, IMAGE, IMAGE, 8], [7, IMAGE, 9, 9, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    roles = roles_of_inputs(ids, mask, IMAGE)
    assert roles.tolist() == [[0, 0, 1, 2, 2, 1], [1, 2, 1, 1, 1, 1]]
    step = torch.tensor([[5], [0]])
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    assert roles_of_inputs(step, longer, IMAGE, past=6).tolist() == [[3], [3]]
    # Rows that have finished are fed padding.
    assert roles_of_inputs(step, longer, IMAGE, past=6, pad_token_id=0).tolist() == [[3], [0]]
    # Without a 2-D mask only leading padding can be padding.
    full = torch.zeros(2, 1, 6, 6)
    assert roles_of_inputs(ids, full, IMAGE, pad_token_id=0)[0, :3].tolist() == [0, 0, 1]
    assert (roles_of_inputs(ids, None, IMAGE) != Role.PAD).all()
