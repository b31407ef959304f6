"""A main job on a tiny model, with a made-up judge."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from care.defenses import material
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.neurons.search import NeuronConfig
from care.diagnosis.reliability import ReliabilityConfig
from care.diagnosis.site_scan_config import SiteScanConfig
from care.judges.base import Verdict
from care.judges.rules import RulesJudge
from care.models.spec import ModelSpec
from care.pipeline import workspace
from care.pipeline.config import RepairJob
from care.runs.spec import RunSpec
from care.statistics.sampling import SamplingSpec
from kit import tiny

COMPARED = ("suites", "outcomes", "controls", "diagnosis", "repair", "examples", "attribution")
"""Parts of a report that don't tell how long it took."""


SMALL = DiagnosisConfig(
    sites=SiteScanConfig(
        windows=(1,),
        max_attacks=4,
        max_benign=3,
        top_sites=1,
        generate_examples=2,
        sampling=SamplingSpec(resamples=100),
    ),
    neurons=NeuronConfig(verified=8, described=0, sampling=SamplingSpec(resamples=100)),
    curves=None,
    stability=ReliabilityConfig(splits=10, sampling=SamplingSpec(resamples=100)),
    neuron_prompts=8,
    reseeded=0,
    rescanned=3,
    repair_prompts=4,
    judged=5,
)
"""The diagnosis of a model of four layers."""


class MadeUpJudge(RulesJudge):
    """Refused or not by a hash of the goal and the answer; harmless requests mostly aren't."""

    def __call__(self, goals: Any, responses: Any) -> list[Verdict]:
        drawn = [
            zlib.crc32(f"{g}/{a}".encode()) % 10 for g, a in zip(goals, responses, strict=True)
        ]
        return [
            Verdict(refused=number < (1 if "good" in goal else 4), degenerate=False, on_goal=True)
            for goal, number in zip(goals, drawn, strict=True)
        ]


def a_job(
    out: Path, *, resume: bool = False, seed: int = 0, batch_size: int | None = None, **more: Any
) -> RepairJob:
    """A job that goes to a folder."""
    return RepairJob(run=RunSpec(out, resume, seed, batch_size), **more)


def write_requests(folder: Path, count: int = 2) -> None:
    """bad.jsonl and good.jsonl, so many malicious and benign requests."""
    for name, kind in (("bad", "malicious"), ("good", "benign")):
        rows = [
            {"id": f"{name}{i}", "prompt": f"{name} {i}?", "goal": f"{name} {i}", "kind": kind}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_files(folder: Path, count: int = 120) -> dict[str, Path]:
    """So many attacks and as many harmless requests, half of either with a picture."""
    for place in range(20):
        tiny.picture(place).save(folder / f"{place}.png")
    paths = {}
    for name, word, kind in (("attacks", "bad", "malicious"), ("benign", "good", "benign")):
        lines = [
            {
                "id": f"{word}{i}",
                "prompt": f"{word} thing {i}?",
                "goal": f"{word} {i}",
                "kind": kind,
            }
            | ({"images": [f"{i // 2 % 20}.png"]} if i % 2 else {})
            for i in range(count)
        ]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return own_files(tmp_path)


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny.tiny_vlm()
    monkeypatch.setattr(ModelSpec, "load", lambda self: vlm)
    monkeypatch.setattr(workspace, "rules_for", lambda model: MadeUpJudge())
    monkeypatch.setattr(material, "RulesJudge", MadeUpJudge)


def parts(tree: dict) -> dict:
    return {name: tree[name] for name in COMPARED}
