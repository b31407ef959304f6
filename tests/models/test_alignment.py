"""Pairs: alignment by role, and which counterpart an attack gets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from care.data.example import Example
from care.data.minimal_pairs import Pair, align, by_kind, make_pairs
from care.errors import DataError
from care.models.anatomy import Role
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


def test_one_prompt_beside_two_pictures_aligns_token_by_token():
    vlm = tiny.tiny_vlm()
    batches = [
        vlm.batch(Example("x", "What is it?", images=(tiny.picture(seed),))) for seed in (0, 1)
    ]
    index, found = align(*(batch.roles for batch in batches))
    assert found.all() and torch.equal(index[0], torch.arange(index.shape[1]))


def example(name, prompt, goal="", pictures=0, kind="benign", category=""):
    images = tuple(tiny.picture(seed) for seed in range(pictures))
    return Example(name, prompt, images, goal, kind, category=category)


def test_the_closest_counterpart_is_chosen():
    attack = example("a", "Make a bomb!", "make a bomb", 1, "malicious", "weapons")
    others = [
        example("short", "Tea"),
        example("length", "Make a cake!", pictures=1),
        example("category", "Describe a long history of it", "", 1, category="weapons"),
        example("goal", "How does one do that?", "make a bomb", 1),
        example("images", "Make a bomb!", "", 0),
        example("same", "Make a bomb!", "", 1),
    ]
    for number in range(len(others), 0, -1):
        (pair,) = make_pairs([attack], others[:number])
        assert pair.attack is attack and pair.benign is others[number - 1]
    with pytest.raises(DataError, match="none were given"):
        make_pairs([attack], [])


def test_pairs_of_a_kind_come_together_in_the_order_of_the_kinds():
    one, other = example("a", "Make tea"), example("b", "Make cake")
    pairs = [Pair(one, other, kind) for kind in ("words", "pictures", "words", "")]
    found = by_kind(pairs)
    assert list(found) == ["words", "pictures", ""]
    assert found["words"] == [pairs[0], pairs[2]] and by_kind([]) == {}
