"""Jobs: configuration, splits by goal, the small world's suites, mean rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care.data.small_world import suites
from care.data.small_world.suites import FIT_LENGTHS, SELECTION_LENGTHS
from care.errors import DataError, UsageError
from care.evaluation.config import StoredConfig
from care.evaluation.results import Results
from care.models.spec import ModelSpec
from care.pipeline.config import CompareJob, RepairJob, job_of
from care.pipeline.selection import mean_rates
from care.pipeline.splits import split_examples, suites_of
from care.runs.spec import RunSpec
from care.typed import from_tree


def write(path: Path, kind: str, count: int) -> Path:
    lines = [
        json.dumps({"id": f"{kind}-{i}", "prompt": f"{kind} request {i}", "kind": kind})
        for i in range(count)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_configuration_leaves_out_where_and_whether_to_resume() -> None:
    config = RepairJob(run=RunSpec(Path("a"), resume=True)).config()
    assert "out" not in config
    assert "resume" not in config
    assert config == RepairJob(run=RunSpec(Path("b"))).config()
    assert config != RepairJob(run=RunSpec(Path("a"), seed=1)).config()
    json.dumps(RepairJob(attacks=Path("x"), benign=Path("y")).config())


@pytest.mark.parametrize("field", ["max_new_tokens", "test_length"])
def test_sizes_are_positive(field: str) -> None:
    with pytest.raises(UsageError, match=f"{field} must be at least 1, got 0"):
        RepairJob(**{field: 0})


def test_a_test_is_as_long_as_the_suites_of_the_small_world() -> None:
    assert RepairJob().test_length == suites.TEST_LENGTH


def test_own_attacks_need_own_benign_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both --attacks and --benign"):
        RepairJob(attacks=tmp_path / "a.jsonl")


def test_own_examples_are_split_by_goal_and_nothing_is_lost(tmp_path: Path) -> None:
    job = RepairJob(
        model=ModelSpec("some/model"),
        attacks=write(tmp_path / "a.jsonl", "malicious", 60),
        benign=write(tmp_path / "b.jsonl", "benign", 60),
    )
    parts = {split: suites_of(job, split) for split in ("fit", "validation", "test")}
    prompts = {
        split: {e.prompt for suite in found for e in suite} for split, found in parts.items()
    }
    assert sum(map(len, prompts.values())) == 120
    assert len(set.union(*prompts.values())) == 120
    assert len(prompts["fit"]) > len(prompts["test"]) > 10
    assert {suite.role for suite in parts["fit"]} == {"attack", "over_refusal"}
    assert len(split_examples(parts["test"], lambda s: s.role == "attack")) > 5


@pytest.mark.parametrize("split", ["fit", "validation", "test"])
def test_a_quick_job_asks_a_quarter_of_every_suite(tmp_path: Path, split: str) -> None:
    """And still goals of both kinds, as the first of a suite alone aren't."""
    jobs = [RepairJob(quick=quick) for quick in (False, True)]
    whole, part = ({s.name: s for s in suites_of(job, split)} for job in jobs)
    assert whole.keys() == part.keys()
    assert all(len(part[name]) == -(-len(whole[name]) // 4) for name in whole)
    assert {e.category for e in part["text-jailbreak"]} == {"pictured", "written"}
    assert "quick" not in jobs[0].config()
    assert jobs[1].config()["quick"] == "a quarter of the examples"
    own = {
        "attacks": write(tmp_path / "a.jsonl", "malicious", 60),
        "benign": write(tmp_path / "b.jsonl", "benign", 60),
    }
    for some, of in zip(*(suites_of(RepairJob(**own, quick=q), split) for q in (True, False)),
                        strict=True):  # fmt: skip
        assert len(some) == -(-len(of) // 4) and set(some) < set(of)


@pytest.mark.parametrize(("split", "times"), [("fit", 6), ("validation", 8), ("test", 16)])
def test_a_quick_comparison_asks_less(tmp_path: Path, split: str, times: int) -> None:
    jobs = [CompareJob(quick=quick) for quick in (True, False)]
    part, whole = (suites_of(job, split) for job in jobs)
    assert [len(suite) for suite in part] == [-(-len(suite) // times) for suite in whole]
    assert {e.category for suite in part for e in suite} >= {"pictured", "written"}
    assert jobs[0].config()["quick"].endswith("a sixteenth to test")
    tree = json.loads(json.dumps(jobs[0].config()))
    stored = from_tree(StoredConfig, tree, "config", strict=False, what="The manifest")
    assert suites_of(job_of(stored), split) == part
    own = {
        "attacks": write(tmp_path / "a.jsonl", "malicious", 200),
        "benign": write(tmp_path / "b.jsonl", "benign", 200),
    }
    for some, of in zip(*(suites_of(CompareJob(**own, quick=q), split) for q in (True, False)),
                        strict=True):  # fmt: skip
        assert len(some) == -(-len(of) // times) and set(some) < set(of)


def test_a_handful_of_own_examples_is_too_few(tmp_path: Path) -> None:
    job = RepairJob(
        model=ModelSpec("some/model"),
        attacks=write(tmp_path / "a.jsonl", "malicious", 1),
        benign=write(tmp_path / "b.jsonl", "benign", 1),
    )
    with pytest.raises(DataError, match="a handful is too few"):
        for split in ("fit", "validation", "test"):
            suites_of(job, split)


@pytest.mark.parametrize("split", ["fit", "validation", "test"])
def test_the_small_world_gives_every_suite_and_no_goal_twice_over_splits(split: str) -> None:
    found = suites_of(RepairJob(test_length=60), split)
    assert [suite.name for suite in found] == list(suites.NAMES)
    lengths = {suite.name: len(suite) for suite in found}
    if split == "fit":
        assert all(lengths[name] == FIT_LENGTHS.get(name, 120) for name in lengths)
    elif split == "validation":
        assert lengths == {suite.name: SELECTION_LENGTHS[suite.role] for suite in found}
    else:
        assert set(lengths.values()) == {60}


def test_another_model_is_not_asked_the_embedded_ones_adversarial_pictures() -> None:
    names = [
        suite.name
        for suite in suites_of(RepairJob(model=ModelSpec("some/model"), test_length=4), "test")
    ]
    assert set(suites.NAMES) - set(names) == set(suites.PGD)


def test_mean_rates_leave_the_baseline_out() -> None:
    def row(suite: str, role: str, outcome: str, place: int) -> dict:
        return {
            "key": f"{suite}/{place}",
            "suite": suite,
            "role": role,
            "example": f"{place}",
            "kind": "malicious" if role == "attack" else "benign",
            "defense": "none",
            "seed": 0,
            "outcome": outcome,
            "correct": None,
            "error": None,
        }

    rows = [
        row("direct", "attack", "harmful", 0),
        row("first", "attack", "harmful", 1),
        row("first", "attack", "refused", 2),
        row("second", "attack", "degenerate", 3),
        row("plain", "utility", "safe", 4),
        row("twin", "over_refusal", "safe", 5),
        row("twin", "over_refusal", "refused", 6),
    ]
    rates = mean_rates(Results(rows), "none")
    assert rates["asr"] == pytest.approx((0.5 + 0.0) / 2)
    assert rates["utility"] == 1.0
    assert rates["answered"] == 0.5
    assert rates["degenerate"] == pytest.approx((0 + 0 + 1 + 0 + 0) / 5)
