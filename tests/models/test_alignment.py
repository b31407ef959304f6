"""Alignment: which positions of two runs correspond."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from care.data.example import Example
from care.models.alignment import align
from care.models.sites import Role
from kit import tiny

ROWS = st.integers(1, 3).flatmap(
    lambda rows: st.tuples(
        *(
            st.integers(1, 12).flatmap(
                lambda length, rows=rows: st.lists(
                    st.lists(st.sampled_from(list(Role)), min_size=length, max_size=length),
                    min_size=rows,
                    max_size=rows,
                )
            )
            for _ in range(2)
        )
    )
)


@given(ROWS)
def test_a_counterpart_has_the_same_role_and_no_other_counterpart(rows):
    here, there = (torch.tensor([[int(role) for role in row] for row in part]) for part in rows)
    index, found = align(here, there)
    assert index.shape == found.shape == here.shape
    assert not found[here == Role.PAD].any()
    for row in range(len(here)):
        chosen = index[row][found[row]]
        assert torch.equal(there[row][chosen], here[row][found[row]])
        assert len(set(chosen.tolist())) == len(chosen)
        for role in (Role.TEXT, Role.IMAGE, Role.RESPONSE):
            counts = [int((part[row] == role).sum()) for part in (here, there)]
            mine = found[row] & (here[row] == role)
            assert int(mine.sum()) == min(counts)
            places = index[row][mine]
            assert torch.equal(places, places.sort().values)  # order is kept
            if counts[0] and min(counts):
                own = (here[row] == role).nonzero().flatten()
                # Text counts from the end, the rest from the start.
                edge = -1 if role == Role.TEXT else 0
                theirs = (there[row] == role).nonzero().flatten()
                assert int(index[row, own[edge]]) == int(theirs[edge])


@given(ROWS)
def test_alignment_can_be_turned_round(rows):
    here, there = (torch.tensor([[int(role) for role in row] for row in part]) for part in rows)
    index, found = align(here, there)
    back, has = align(there, here)
    for row, place in found.nonzero().tolist():
        other = int(index[row, place])
        assert has[row, other] and int(back[row, other]) == place


@given(ROWS)
def test_a_run_is_aligned_with_itself(rows):
    roles = torch.tensor([[int(role) for role in row] for row in rows[0]])
    index, found = align(roles, roles)
    assert torch.equal(found, roles != Role.PAD)
    places = torch.arange(roles.shape[1]).expand_as(roles)
    assert torch.equal(index[found], places[found])


def test_one_prompt_beside_two_pictures_aligns_token_by_token(vlm):
    batches = [
        vlm.batch(Example("x", "What is it?", images=(tiny.picture(seed),))) for seed in (0, 1)
    ]
    index, found = align(*(batch.roles for batch in batches))
    assert found.all() and torch.equal(index[0], torch.arange(index.shape[1]))
