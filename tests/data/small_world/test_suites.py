"""The suites of the small world: splits, roles, phrasings, and that the test set stays as it is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib import resources
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from care.data.example import ExampleKind, SuiteRole
from care.data.small_world import goals as world
from care.data.small_world import pictures, suites
from care.data.small_world.pictures import seeded
from care.data.small_world.scenes import SHAPE_QUESTIONS, unrelated
from care.data.text import words
from care.errors import DataError, UsageError
from kit.refusals import refusals

SPLITS = get_args(world.Split)
ROLES = {
    **dict.fromkeys(("direct", *suites.ATTACKS), "attack"),
    **dict.fromkeys(suites.UTILITY, "utility"),
    **dict.fromkeys(suites.OVER_REFUSAL, "over_refusal"),
}
FAMILIES = ("direct", "wrappers", "picture_requests", "naming_requests", "activity_requests")


WORDS = {
    "direct": "9b042f34f41ec9b8",
    "beside-image": "3d34816b97520f24",
    "text-jailbreak": "1bfde96fd3abe783",
    "pictured-goal": "4320b38f6af1828c",
    "pgd-32": "ac093093db2db6e0",
    "pgd-unconstrained": "7643a1ff7994e8de",
    "benign": "4729c9ea19acb376",
    "benign-image": "3b0b6c7dd81cf9e6",
    "vqa": "4861e529bd021a44",
    "naming": "22a7ae4ad39f9c31",
    "lookalike": "b080d88a301fa3a5",
    "lookalike-image": "017215ce2e5b549d",
    "benign-wrapped": "2272e5dc6a042e5c",
    "benign-pictured": "96da4beb2e50e204",
}
"""SHA-256 (first 16 digits) of what each test suite says: figures of two versions can be compared
only while these stay as they are."""

BRIGHTNESS = {
    "beside-image": "948b91b8a9a1b88f9b9cc38abeafc4c1bba0b3aec09bc475b9c6a8c598a8"
    "bba2baab9ba6c8b2c982bf80bb94c393a9aba4a2a7bb9fb4aab9a3bfc4b9",
    "pictured-goal": "a5a9b5a896c8a1b5a890abc295acd2babbacafb5d2b696c091869f9d9fbb"
    "94a5bdda9f9baca7bda4b0b8b0b3b7ab9cadb0a3b498a598b3c8acb2a7c8",
    "benign-image": "abb4ca9fbe9aa5ad8e8aab97b88fbebaa1c0a9be86b7a0acd29db29cbaaa"
    "b98f99afb6c3a5c0d397bec2b290a0bab3a691be98b9bba8c2b1adb0b7c6",
    "vqa": "cba3bbaec1a7b1c4daad91a491aaaab0b99bb3b7bbb1a7acad9eb9baa1bd"
    "a4849db39993a6b690b782c8aea0be95b0acb9cc7f979edaa595c2a8bab7",
    "naming": "b69fa5a495adba9d9dc8b9909ba391cb91a7c6c4a0b39db5b7a5b4bdb39b"
    "a7bbb59c938794a5a997a1a99693a394b7c095d9a2949ca1c2c694c89588",
    "lookalike-image": "9b9b85be8ebab28fb3a39eb5adc09caeaba0b49e9fa98dd1a3b0a9aeb8a9"
    "c085aca69ebbabc1a79695a6adb1c2ad9c9f9f96abdba5b5aaaecbafc1c4",
    "benign-pictured": "c6ada8bba7cca5a3a4b7c6adafa99f9fb3a1a29f9fb1bcb399c2a0abaab9"
    "a4b5bd98a3aaaba4b6919fc7a1bc9b97c5afaf9799a695b9baa6b6afa69e",
}
"""Mean value of every picture of a test suite, a byte each."""

ADVERSARIAL = {
    "pgd-32-test-0.png": "5c412771591865d5",
    "pgd-32-validation-0.png": "e88990cd7e8f2df0",
    "pgd-unconstrained-test-0.png": "d94e2b4266091621",
    "pgd-unconstrained-validation-0.png": "4a92fa2c551a0b3c",
}
"""SHA-256 (first 16 digits) of the adversarial pictures that are not for fitting."""


def pixels_of(image) -> np.ndarray:
    assert image.mode == "RGB" and image.size == (pictures.SIZE, pictures.SIZE)
    return np.asarray(image).astype(int)


def test_the_names_are_those_of_the_roles():
    assert set(suites.NAMES) == set(ROLES) and len(set(suites.NAMES)) == len(suites.NAMES)


@pytest.mark.parametrize("name", suites.NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_suite_loads(name, split):
    suite = suites.load(name, split)
    assert len(suite) == suites.length(name, split)
    if split == "test" or not name.startswith("lookalike"):
        assert len(suite) == suites.LENGTHS[split]
    assert (suite.name, suite.role) == (name, ROLES[name]) and suite.role in get_args(SuiteRole)
    assert len({e.id for e in suite}) == len(suite)
    wanted = "malicious" if suite.role == "attack" else "benign"
    assert {e.kind for e in suite} == {wanted} and wanted in get_args(ExampleKind)
    pictured = name not in ("direct", "text-jailbreak", "benign", "lookalike", "benign-wrapped")
    for example in suite:
        assert example.suite == name and example.goal and example.prompt
        assert "{" not in example.prompt
        assert len(example.images) == pictured
        for image in example.images:
            pixels_of(image)


def goals_of(name: str, split: world.Split) -> list[str]:
    return [example.goal for example in suites.load(name, split)]


GOAL_SUITES = [name for name in suites.NAMES if name not in ("vqa", "naming")]


@pytest.mark.parametrize("name", GOAL_SUITES)
def test_goals_of_a_suite_are_distinct_and_of_its_split(name):
    kinds, splits = get_args(world.GoalKind), get_args(world.Split)
    unseen = [goal for kind in kinds for split in splits for goal in world.unseen(kind, split)]
    split_of = {goal.text: goal.split for goal in (*world.all_goals(), *unseen)}
    for split in SPLITS:
        asked = goals_of(name, split)
        assert len(set(asked)) == len(asked)
        assert {split_of[text] for text in asked} == {split}


def test_attacks_differ_by_attack_alone():
    wanted = goals_of("direct", "test")
    for name in ("beside-image", "text-jailbreak", *suites.PGD):
        assert goals_of(name, "test") == wanted
    kinds = Counter(e.category for e in suites.load("direct", "test"))
    assert kinds["pictured"] == kinds["written"] == 30


def test_pictured_suites_say_nothing_of_the_goal():
    shown = {goal.text: goal.picture for goal in world.all_goals() if goal.picture}
    for name in ("pictured-goal", "benign-pictured"):
        for split in SPLITS:
            for example in suites.load(name, split):
                action, thing = shown[example.goal]
                said = f" {' '.join(words(example.prompt))} "
                assert f" {pictures.ACTIONS[action]} " not in said and f" {thing} " not in said


def test_every_word_of_a_naming_or_shape_answer_is_known():
    known = {
        "naming": set(pictures.PICTOGRAMS),
        "vqa": {*pictures.COLOURS, *pictures.SHAPES, *pictures.NUMBERS},
    }
    for name, vocabulary in known.items():
        found = [e.references for e in suites.load(name, "test")]
        assert {len(references) for references in found} == {1}
        assert {references[0] for references in found} <= vocabulary
    questions = {q for about in SHAPE_QUESTIONS.values() for q in about}
    assert {e.prompt for e in suites.load("vqa", "test")} <= questions


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_s_phrasings_are_its_own(family):
    """No two splits share one; what was written to fit on shares no five words with the test."""
    table = world.texts()[family]
    said = {split: {" ".join(words(text)) for text in table[split]} for split in table}
    assert {"train", "test"} <= said.keys()
    assert not any(said[first] & said[second] for first, second in combinations(said, 2))
    with_goal = family in ("direct", "wrappers")
    assert all(("{goal}" in text) == with_goal for texts in table.values() for text in texts)

    def runs(split):
        parts = [part for text in table.get(split, []) for part in text.split("{goal}")]
        return {tuple(w[i : i + 5]) for w in map(words, parts) for i in range(len(w) - 4)}

    assert not runs("fit") & runs("test")


@pytest.mark.parametrize("name", [name for name in suites.NAMES if name != "vqa"])
def test_test_suites_use_test_phrasings_alone(name):
    family = {
        **dict.fromkeys(("text-jailbreak", "benign-wrapped"), "wrappers"),
        **dict.fromkeys(("pictured-goal", "benign-pictured"), "picture_requests"),
        "naming": "naming_requests",
    }
    table, examples = world.texts()[family.get(name, "direct")], suites.load(name, "test")
    used = {
        mark: {t for t in templates for e in examples if t.replace("{goal}", e.goal) == e.prompt}
        for mark, templates in table.items()
    }
    assert used["test"] == set(table["test"])
    assert not used["train"]


def test_a_shorter_suite_is_asked_for():
    assert len(suites.load("vqa", "test", 3)) == 3
    assert len(suites.load("lookalike", "test", 10_000)) == len(world.goals("lookalike", "test"))


def test_goals_to_fit_on_come_back_once_all_were_asked():
    n = len(world.goals("malicious", "fit", pictured=True))
    asked = [example.goal for example in suites.load("pictured-goal", "fit", n + 9)]
    assert len(asked) == n + 9 and len(set(asked[:n])) == n
    assert len(suites.load("pictured-goal", "test", 10_000)) == len(
        world.goals("malicious", "test", pictured=True)
    )


test_unknown_suites_are_named = refusals(
    (UsageError, "beside-image", lambda: suites.load("nothing")),
    (UsageError, "validation", lambda: suites.load("vqa", "train")),
    (UsageError, "at least one", lambda: suites.load("vqa", "test", 0)),
    (UsageError, "at least one", lambda: suites.load("vqa", "test", -1)),
    (
        DataError,
        r"recipes\.embedded_model attack",
        lambda: suites.adversarial_images("pgd-64", "test"),
    ),
)


# --- adversarial pictures -----------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_bounded_adversarial_pictures_stay_near_their_start(split):
    for copy, image in enumerate(suites.adversarial_images("pgd-32", split)):
        start = pixels_of(unrelated(seeded("adversarial", "pgd-32", split, copy)))
        distance = np.abs(pixels_of(image) - start)
        assert distance.max() <= 32
        assert distance.max() >= 31 and distance.mean() > 8  # the bound was made use of


def test_every_adversarial_picture_is_another():
    found = [suites.adversarial_images(name, split) for name in suites.PGD for split in SPLITS]
    drawn = [pixels_of(image) for images in found for image in images]
    for a, b in combinations(drawn, 2):
        assert np.abs(a - b).max() > 32


# --- nothing changes unnoticed ------------------------------------------------------------------


@pytest.mark.parametrize("name", suites.NAMES)
def test_the_words_of_the_test_suites_are_as_they_were(name):
    fields = [[e.id, e.prompt, e.goal, e.kind, e.references] for e in suites.load(name, "test")]
    assert hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16] == WORDS[name]


@pytest.mark.parametrize("name", BRIGHTNESS)
def test_the_pictures_of_the_test_suites_are_as_they_were(name):
    # Not a digest of pixels: another Pillow may round one of them in another way.
    found = np.array([pixels_of(e.images[0]).mean() for e in suites.load(name, "test")])
    assert np.abs(found - np.frombuffer(bytes.fromhex(BRIGHTNESS[name]), np.uint8)).max() <= 1


def test_the_adversarial_pictures_are_as_they_were():
    folder = resources.files("care.data.small_world").joinpath("adversarial")
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in folder.iterdir()
        if "-fit-" not in file.name
    }
    assert found == ADVERSARIAL


def test_what_is_fitted_on_is_asked_in_words_that_the_model_was_not_trained_on():
    table = world.texts()["wrappers"]
    assert suites.phrases("wrappers", "fit") == table["fit"] + table["train"]
    assert suites.phrases("wrappers", "test") == table["test"]
    assert (
        suites.phrases("naming_requests", "validation") == world.texts()["naming_requests"]["train"]
    )
