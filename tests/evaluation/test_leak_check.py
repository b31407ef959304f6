"""Leaks that an artefact tells by itself, and those that are looked for in suites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care.data.contamination import SCHEME, goal_digests
from care.data.example import Example, Suite
from care.data.registry import fitted_suite
from care.data.small_world import suites as world
from care.defenses.material import Material
from care.defenses.neuron_suppression import NeuronSuppression
from care.errors import ArtefactError, UsageError
from care.evaluation.leak_check import refuse_leaks, repair_leaks, stated_goals
from care.evaluation.scores import RepairLeaks, SuiteLeak
from care.models.sites import N_CLASSES
from kit.artefacts import made
from kit.tiny import picture


def asked(*goals: str, kind: str = "malicious", images: tuple = ()) -> list[Example]:
    return [Example(f"e{n}", f"do {goal}", images, goal, kind) for n, goal in enumerate(goals)]


def suite(name: str, examples: list[Example]) -> Suite:
    return Suite(name, "attack", tuple(examples))


def stating(goals: dict, folder: Path) -> Path:
    """An artefact whose manifest states the goals that it was fitted on."""
    manifest = {"fitted_on": {"complied": 3, "goals": goals}}
    return made(manifest=manifest).save(folder)


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """A repair that was fitted on three goals."""
    answered = [(e, "No.") for e in asked("pick a lock", "steal a car", "bake a cake")]
    material = Material((answered[0],), (answered[1],), (answered[2],))
    return stating(material.goals, tmp_path / "repair")


def test_a_leaking_repair_is_refused_by_name_suite_and_ids(fitted):
    suites = [
        suite("one", asked("Pick LOCKS", "whistle", "the cars, steal")),
        suite("other", asked("whistle")),
    ]
    with pytest.raises(UsageError) as refused:
        repair_leaks({"mine": fitted}, suites)
    said = str(refused.value)
    assert "mine and one, 2 of 3 examples (/e0, /e2)" in said and "other" not in said
    assert "--allow-leaks" in said
    report = repair_leaks({"mine": fitted}, suites, allow=True)
    leak = SuiteLeak(2, 3, ("/e0", "/e2"))
    assert report == {"mine": RepairLeaks("same goals", "", {"one": leak})}


def test_other_goals_kinds_and_near_ones_pass(fitted):
    near = asked("pick a lock quickly", "whistle")
    report = repair_leaks({"mine": fitted}, [suite("s", near)])
    assert report["mine"].found == {}
    other_kind = Suite("s", "over_refusal", tuple(asked("pick a lock", kind="benign")))
    assert repair_leaks({"mine": fitted}, [other_kind])["mine"].found == {}


def test_benign_questions_leak_with_their_pictures_alone(tmp_path):
    question = asked("name it", kind="benign", images=(picture(0, (9, 7)),))
    goals = {"scheme": SCHEME, "digests": sorted(goal_digests(question))}
    path = stating(goals, tmp_path / "repair")
    other = asked("name it", kind="benign", images=(picture(1, (9, 7)),))
    assert repair_leaks({"r": path}, [Suite("s", "utility", tuple(other))])["r"].found == {}
    with pytest.raises(UsageError, match="1 of 1 examples"):
        repair_leaks({"r": path}, [Suite("s", "utility", tuple(question))])


def test_many_ids_are_cut(tmp_path):
    many = asked(*(f"goal number {n}" for n in range(9)))
    path = stating({"scheme": SCHEME, "digests": sorted(goal_digests(many))}, tmp_path / "r")
    with pytest.raises(UsageError, match=r"9 of 9 examples \(/e0, /e1, /e2, /e3, /e4, …\)"):
        repair_leaks({"r": path}, [suite("s", many)])


def test_an_older_artefact_is_not_checked_and_says_so(tmp_path):
    older = {"fitted_on": {"complied": 3, "examples": ["0123456789abcdef"]}}
    for place, manifest in enumerate(({}, older, {"fitted_on": None}, {"fitted_on": "x"})):
        path = made(manifest=manifest).save(tmp_path / str(place))
        report = repair_leaks({"r": path}, [suite("s", asked("whistle"))])
        assert report["r"].checked == "not checked" and "doesn't say" in report["r"].why
    digests, why = stated_goals({"fitted_on": {"goals": {"scheme": "care.goals/9"}}})
    assert digests is None and "care.goals/9" in why


@pytest.mark.parametrize(
    "goals",
    [
        "x",
        ["0123456789abcdef"],
        {"digests": []},
        {"scheme": 1, "digests": []},
        {"scheme": SCHEME},
        {"scheme": SCHEME, "digests": "0123456789abcdef"},
        {"scheme": SCHEME, "digests": [1]},
        {"scheme": SCHEME, "digests": ["0123456789ABCDEF"]},
        {"scheme": SCHEME, "digests": ["0123456789abcdef0"]},
    ],
)
def test_malformed_digests_are_refused(goals, tmp_path):
    path = stating(goals, tmp_path / "repair")
    with pytest.raises(ArtefactError, match=r"fitted_on\.goals in the manifest of .*repair"):
        repair_leaks({"r": path}, [suite("s", asked("whistle"))], allow=True)


def test_a_defense_that_states_no_goals_is_not_checked(tmp_path):
    few = NeuronSuppression(((0, 1),), ((0.0,) * N_CLASSES,), (2, 8)).save(tmp_path / "few")
    report = repair_leaks({"few": few}, [suite("s", asked("whistle"))])
    assert report["few"].checked == "not checked" and report["few"].found == {}


def test_an_artefact_for_28000_goals_stays_small(tmp_path):
    many = {"scheme": SCHEME, "digests": [f"{n:016x}" for n in range(28_000)]}
    path = stating(many, tmp_path / "repair")
    assert (path / "repair.json").stat().st_size < 800_000
    digests, _ = stated_goals(json.loads((path / "repair.json").read_text())["manifest"])
    assert digests is not None and len(digests) == 28_000


def test_of_the_small_world_the_fit_split_is_what_was_fitted_on():
    found = fitted_suite("text-jailbreak")
    assert found.revision == "fit" and len(found) == world.FIT_LENGTHS["text-jailbreak"]
    refuse_leaks([found], [world.load("text-jailbreak")])  # no goal crosses a split
    with pytest.raises(UsageError, match="also tested"):
        refuse_leaks([found], [world.load("direct", "fit")])


def test_no_goal_of_the_small_world_leaks_by_its_digest():
    fit, test = (
        goal_digests(e for name in world.NAMES for e in world.load(name, split))
        for split in ("fit", "test")
    )
    assert not fit.keys() & test.keys()
