"""Pictures made against a job's model: one for each radius and split, kept for other jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from care.attacks import presets
from care.errors import DataError, UsageError
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.pipeline import made_pictures
from care.pipeline.config import RepairJob
from care.pipeline.made_pictures import goals_of, made_suites, make_pictures
from care.pipeline.splits import plan_of
from care.runs.run import Run
from care.runs.spec import RunSpec
from kit.jobs import own_files


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RepairJob:
    """A job on files, whose descents are two steps long."""
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(made_pictures, "DESCENDED", 4)
    for name in ("pgd-32", "pgd-unconstrained"):
        config = replace(presets.PRESETS[name], steps=2, batch=2)
        monkeypatch.setitem(presets.PUBLISHED, name, presets.PublishedAttack("jailbreak", config))
    files = own_files(tmp_path, 60)
    return RepairJob(model=ModelSpec("tiny"), pgd=("8", "unconstrained"), **files)


def opened(folder: Path) -> Run:
    run = Run(folder, resume=True, config={})
    run.pin("model", {"of": "test", "digest": "abc"})
    return run


def test_a_picture_for_each_radius_and_split_is_made_once(
    job: RepairJob, vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(job)
    with opened(tmp_path / "run") as run:
        found = {split: make_pictures(job, run, vlm, plan, split) for split in ("fit", "test")}
    for split, suites in found.items():
        assert [suite.name for suite in suites] == ["made-pgd-8", "made-pgd-unconstrained"]
        assert {e.goal for e in suites[0]} == {e.goal for e in goals_of(plan[split])}
        assert all(e.prompt == e.goal and len(e.images) == 1 for e in suites[0])
    pictures = {p.read_bytes() for p in (tmp_path / "run" / "pgd").glob("*/image.png")}
    assert len(pictures) == 4  # of two radii and two splits
    kept = tmp_path / "cache" / "attacks"
    assert len(list(kept.iterdir())) == 4

    monkeypatch.setattr(made_pictures, "make_image", lambda *_: pytest.fail("it is there"))
    other = replace(job, run=RunSpec(tmp_path / "other"))
    with opened(tmp_path / "other") as run:  # from the cache
        again = make_pictures(other, run, vlm, plan, "test")
    asked = [[e.digest() for suite in suites for e in suite] for suites in (again, found["test"])]
    assert asked[0] == asked[1]
    assert made_suites(job, tmp_path / "run", plan, "test") == found["test"]
    with opened(tmp_path / "run") as run:  # another seed has another picture
        seeded = replace(job, run=RunSpec(tmp_path / "run", seed=1))
        (tmp_path / "run" / "pgd" / "8-test" / "attack.json").unlink()
        with pytest.raises(pytest.fail.Exception, match="it is there"):
            make_pictures(seeded, run, vlm, plan, "test")


@pytest.mark.parametrize("radius", ["0", "256", "-1", "big", "3.5", "²"])
def test_a_radius_is_in_levels(radius: str) -> None:
    with pytest.raises(UsageError, match="pass radii from 1 to 255, or unconstrained"):
        RepairJob(pgd=(radius,))


def test_without_a_malicious_goal_no_picture_can_be_made(job: RepairJob) -> None:
    harmless = [suite for suite in plan_of(job)["fit"] if suite.role != "attack"]
    with pytest.raises(DataError, match="leave --pgd out"):
        goals_of(harmless)
    assert replace(job, pgd=()).config().keys() == job.config().keys() - {"pgd"}
