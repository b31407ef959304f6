"""The requests that a job is fitted on, answered in shards: activations equal to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from care.attacks import pgd, presets
from care.defenses.material import load_decisions
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.pipeline import split_plan, splits, workflow
from care.pipeline.config import RepairJob
from care.pipeline.splits import Splits
from care.pipeline.stages import Stages
from care.pipeline.workflow import open_run
from care.runs.merging import merge
from care.runs.shards import Shard
from care.runs.spec import RunSpec
from care.statistics.moments import Moments
from kit.jobs import files, tiny_parts  # noqa: F401


def material(job: RepairJob) -> dict[Any, tuple[np.ndarray, ...]]:
    """Activations of what the job is fitted on."""
    splits = Splits(job)
    with open_run(job, splits) as run:
        Stages(job, run, None, splits=splits).fitter()
    return load_decisions(job.run.out / "decisions.safetensors")


@pytest.mark.parametrize("count", [1, 3])
def test_activations_of_shards_are_those_of_one_process(
    count: int, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 3, **files}
    job = RepairJob(run=RunSpec(tmp_path / "parts", batch_size=8), **asked)
    whole = material(replace(job, run=replace(job.run, out=tmp_path / "whole")))
    for number in range(count, 0, -1):
        workflow.answer_shard(job, Shard(number, count))
    merged = merge(tmp_path / "parts")
    assert merged.whole and merged.batches and not merged.rows
    vlm = ModelSpec().load()
    asked_again: list[int] = []
    prefill = VLM.prefill
    with monkeypatch.context() as patched:
        patched.setattr(VLM, "prefill", lambda *a, **k: asked_again.append(1) or prefill(*a, **k))
        parts = material(replace(job, run=replace(job.run, resume=True)))
    assert not asked_again and isinstance(vlm, VLM)
    assert whole.keys() == parts.keys() and whole
    for site, rows in whole.items():
        for one, other in zip(rows, parts[site], strict=True):
            assert len(one) and np.array_equal(one, other)


def test_named_suites_are_read_and_split_once(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    tested = tmp_path / "tested.jsonl"
    tested.write_text(files["attacks"].read_text().replace("bad", "unseen"))
    for name in ("load_suite", "attack_suites", "harmless_suites", "leaks", "split_by_goal"):
        module = splits if name == "split_by_goal" else split_plan
        wrapped = getattr(module, name)

        def counting(*a: Any, wrapped: Any = wrapped, name: str = name, **k: Any) -> Any:
            calls.append(name)
            return wrapped(*a, **k)

        monkeypatch.setattr(module, name, counting)
    job = RepairJob(
        run=RunSpec(tmp_path / "run", batch_size=8),
        max_new_tokens=2,
        test=(str(tested),),
        attacks=(str(files["attacks"]),),
        benign=(str(files["benign"]),),
    )
    workflow.answer_shard(job, Shard(1, 4))
    assert sorted(calls) == [
        "attack_suites",
        "harmless_suites",  # of --benign
        "harmless_suites",  # of --utility
        "leaks",
        "load_suite",
        "split_by_goal",
    ]


def test_moments_of_shards_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 24)) + 3
    whole, merged = Moments(24).fit(rows), Moments(24)
    for number in range(7):
        merged.merge(Moments(24).fit(rows[number::7]))
    np.testing.assert_allclose(merged.mean_, whole.mean_, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), whole.covariance(), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_pictures_of_shards_are_those_of_one_process(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PUBLISHED, "pgd-32", few(presets.PUBLISHED["pgd-32"]))
    asked: dict[str, Any] = {"max_new_tokens": 3, "pgd": ("32", "64"), **files}

    def a_job(name: str, **more: Any) -> RepairJob:
        return RepairJob(run=RunSpec(tmp_path / name, batch_size=8, **more), **asked)

    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "one" / "suites"))
    whole = material(a_job("whole"))
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "other" / "suites"))
    steps = counted_steps(monkeypatch)
    steps.clear()
    for number in (2, 1):
        job = a_job("parts", resume=(tmp_path / "parts").exists())
        _, waiting = workflow.answer_shard(job, Shard(number, 2))
        assert waiting == ((Shard(1, 2),) if number == 2 else ())
    assert len(steps) == 2 * 3 * 2  # radii, splits, steps of an attempt: each once
    workflow.answer_shard(a_job("parts", resume=True), Shard(2, 2))
    assert merge(tmp_path / "parts").whole
    parts = material(a_job("parts", resume=True))
    assert len(steps) == 2 * 3 * 2
    for picture in (tmp_path / "whole" / "pgd").glob("*-fit/image.png"):
        other = tmp_path / "parts" / picture.relative_to(tmp_path / "whole")
        assert other.read_bytes() == picture.read_bytes()
    for site, rows in whole.items():
        for one, other in zip(rows, parts[site], strict=True):
            assert np.array_equal(one, other)


def few(preset: Any) -> Any:
    """A preset of two steps."""
    return replace(preset, config=replace(preset.config, steps=2, restarts=1, batch=2))


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step of a descent."""
    found: list[int] = []
    advance = pgd.advance
    monkeypatch.setattr(pgd, "advance", lambda *a: found.append(1) or advance(*a))
    return found
