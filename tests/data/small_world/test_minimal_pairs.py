"""Minimal pairs: two requests that differ in what is asked for and in nothing else."""

from __future__ import annotations

import pytest
import torch

from care.data.minimal_pairs import by_kind
from care.data.small_world import goals as world
from care.data.small_world import minimal_pairs as twins
from care.data.text import words
from care.errors import UsageError
from care.models.alignment import align
from care.models.spec import ModelSpec
from care.pipeline.config import RepairJob
from care.pipeline.splits import pairs_of

SPLITS = ("fit", "validation")


def plain(text: str) -> str:
    return " ".join(words(text))


@pytest.mark.parametrize("split", SPLITS)
def test_each_side_is_what_it_says(split):
    harmful = {
        g.text for g in (*world.goals("malicious", split), *world.unseen("malicious", split))
    }
    pairs = twins.load(split)
    assert len(pairs) >= 10
    for pair in pairs:
        assert pair.kind == twins.KIND
        assert (pair.attack.kind, pair.benign.kind) == ("malicious", "benign")
        assert pair.attack.goal in harmful and pair.benign.goal not in harmful
        assert pair.attack.prompt != pair.benign.prompt
        # One phrasing: what is left without the goals is the same.
        rest = [e.prompt.replace(e.goal, "") for e in (pair.attack, pair.benign)]
        assert rest[0] == rest[1] != pair.attack.prompt
        assert not pair.attack.images and not pair.benign.images
    ids = [example.id for pair in pairs for example in (pair.attack, pair.benign)]
    assert len(set(ids)) == len(ids)
    assert len({pair.attack.goal for pair in pairs}) == len(pairs)


def test_no_goal_is_of_another_split_and_all_of_the_file_is_used():
    found = {split: twins.goal_twins(split) for split in SPLITS}
    known = {plain(goal.text): goal for goal in world.all_goals()}
    for split, goals in found.items():
        for harmful, harmless in goals.items():
            goal = known.get(plain(harmful))
            assert goal is None or goal.split == split  # None: one that the model didn't train on
            assert plain(harmless) not in known
    unseen = {
        plain(g.text)
        for kind in ("malicious", "benign", "lookalike")
        for split in ("fit", "validation", "test")
        for g in world.unseen(kind, split)
    }
    both = [*found["fit"].values(), *found["validation"].values()]
    assert not unseen & {plain(text) for text in both} and len(set(both)) == len(both)
    assert len(both) == 60  # as many as twins.json has: no line of it lost its goal


def test_only_splits_that_nothing_is_reported_on():
    with pytest.raises(UsageError, match="fit or validation, not 'test'"):
        twins.goal_twins("test")  # pyright: ignore
    assert twins.load("fit", 3) == twins.load("fit")[:3]


def test_a_job_has_pairs_in_pictures_and_in_words():
    kinds = by_kind(pairs_of(RepairJob(model=ModelSpec("some/model")), 6))
    assert list(kinds) == ["harmful pictures", "twin requests"]
    assert [len(pairs) for pairs in kinds.values()] == [6, 6]
    assert kinds["twin requests"] == twins.load("fit", 6)


@pytest.mark.embedded
def test_twins_align_token_by_token(embedded_vlm):
    for split in SPLITS:
        pairs = twins.load(split)
        for pair in pairs:
            batches = [embedded_vlm.batch(example) for example in (pair.attack, pair.benign)]
            ids = [batch.inputs["input_ids"] for batch in batches]
            assert ids[0].shape == ids[1].shape, (pair.attack.goal, pair.benign.goal)
            index, found = align(*(batch.roles for batch in batches))
            assert found.all()
            assert torch.equal(index[0], torch.arange(index.shape[1]))
            assert 0 < int((ids[0] != ids[1]).sum()) <= 3


@pytest.mark.embedded
def test_the_model_refuses_harmful_twins_more(embedded_vlm):
    """Otherwise the total effect of these pairs would be nothing to explain."""
    pairs = twins.load("fit", 24)
    harmful, harmless = (
        embedded_vlm.refusal_log_odds([getattr(pair, side) for pair in pairs])
        for side in ("attack", "benign")
    )
    assert (harmful - harmless).mean() > 1.0
    assert (harmful > harmless).mean() > 0.75
