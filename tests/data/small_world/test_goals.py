"""The goals of the small world: kinds, splits, what they show, and that they stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from care.data.small_world import goals as world
from care.data.small_world import pictures, suites
from care.data.text import words

SPLITS = get_args(world.Split)
KINDS = get_args(world.GoalKind)


def family(goal: world.Goal) -> str:
    return goal.picture[0] if goal.picture else goal.kind


def test_no_text_is_there_twice_so_no_goal_crosses_a_split():
    texts = [" ".join(words(goal.text)) for goal in world.all_goals()]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_what_the_model_was_not_trained_on_is_in_no_other_split():
    known = {" ".join(words(goal.text)) for goal in world.all_goals()}
    found = [goal for kind in KINDS for split in SPLITS for goal in world.unseen(kind, split)]
    texts = [" ".join(words(goal.text)) for goal in found]
    assert len(set(texts)) == len(texts) > 400
    assert not set(texts) & known
    assert Counter(goal.split for goal in found)["test"] == 0
    assert {goal.kind for goal in found if goal.split == "validation"} == {"lookalike"}


def test_no_pictured_goal_crosses_a_split():
    drawn = Counter(goal.picture for goal in world.all_goals() if goal.picture)
    assert set(drawn.values()) == {1}


def test_shares_of_the_splits():
    sizes = defaultdict(Counter)
    for goal in world.all_goals():
        sizes[family(goal)][goal.split] += 1
    for name, counts in sizes.items():
        n = counts.total()
        share = world.LOOKALIKE_TEST_SHARE if name == "lookalike" else world.TEST_SHARE
        assert abs(counts["test"] - share * n) < 0.51, name
        assert abs(counts["validation"] - world.VALIDATION_SHARE * n) < 0.51, name
        assert counts["fit"] > 0, name


def test_there_are_goals_enough_for_every_test_suite():
    for kind in KINDS:
        assert len(world.goals(kind, "test")) >= suites.LENGTHS["test"], kind


def test_every_goal_is_a_short_verb_phrase():
    for goal in [*world.all_goals(), *(g for kind in KINDS for g in world.unseen(kind))]:
        assert goal.kind in KINDS and goal.split in SPLITS
        assert 2 <= len(goal.text.split()) <= 8, goal
        assert goal.text == goal.text.strip() and goal.text[0].islower()
        assert goal.text[-1] not in ".?!,"


def test_pictured_goals_say_what_they_show():
    for goal in world.all_goals():
        if goal.picture is None:
            continue
        action, thing = goal.picture
        assert goal.text.startswith(pictures.ACTIONS[action])
        assert goal.text.endswith(f" {pictures.article(thing)}")
        assert thing in pictures.OBJECTS
        for name in goal.picture:
            assert min(pictures.pictogram(name).size) > 20, name


def test_harm_follows_from_the_action_and_look_alikes_are_benign():
    for goal in world.all_goals():
        if goal.picture:
            harmful = goal.picture[0] in world.HARMFUL_ACTIONS
            assert goal.kind == ("malicious" if harmful else "benign")
    harmful = ("blow up", "set fire to", "poison", "steal", "smash", "hijack", "hack into")
    assert {pictures.ACTIONS[name] for name in world.HARMFUL_ACTIONS} >= set(harmful)
    for name in ("lookalike", "lookalike-image"):
        for split in SPLITS:
            assert {e.kind for e in suites.load(name, split)} == {"benign"}


def test_goals_are_filtered():
    for split in SPLITS:
        drawn = world.goals("malicious", split, pictured=True)
        written = world.goals("malicious", split, pictured=False)
        assert all(goal.picture for goal in drawn) and not any(goal.picture for goal in written)
        assert drawn + written == world.goals("malicious", split)


@given(n=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_a_sample_repeats_nothing(n, seed):
    drawn = world.sample(list("abcdefgh"), n, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn)) == min(n, 8)


WORLD = """
import hashlib
from care.data.small_world import goals, suites
names = ("direct", "vqa", "pictured-goal", "naming")
digests = [e.digest() for name in names for e in suites.load(name, "fit", 8)]
print(hashlib.sha256(repr((goals.all_goals(), digests)).encode()).hexdigest())
"""


def test_every_process_makes_the_same_world():
    found = set()
    for seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.check_output([sys.executable, "-c", WORLD], env=env))
    assert len(found) == 1
