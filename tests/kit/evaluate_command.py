"""The command line of a small evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care.evaluation import job as evaluation_job
from care.judges.rules import RulesJudge
from care.models.spec import ModelSpec
from kit.evaluations import FakeDefense, FakeVLM


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A fake model that complies, repairs that refuse, and two suites in files."""
    made: list[FakeVLM] = []

    def load(self: ModelSpec) -> FakeVLM:
        made.append(FakeVLM())
        return made[-1]

    monkeypatch.setattr(ModelSpec, "load", load)
    monkeypatch.setattr(evaluation_job, "rules_for", lambda model: RulesJudge())
    monkeypatch.setattr(
        "care.defenses.repair.repair.Repair.load",
        lambda path, vlm=None: FakeDefense(touches="decision"),
    )
    monkeypatch.chdir(tmp_path)
    attacks = [
        {"id": f"a{i}", "prompt": f"please {i}", "goal": f"pick lock number {i % 10}",
         "kind": "malicious"}
        for i in range(20)
    ]  # fmt: skip
    questions = [
        {"id": f"q{i}", "prompt": f"what colour {i}?", "goal": f"name colour {i}",
         "kind": "benign", "references": ["red"]}
        for i in range(12)
    ]  # fmt: skip
    for name, rows in (("attack", attacks), ("vqa", questions)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


ARGUMENTS = ["evaluate", "m", "--suite", "attack.jsonl", "--utility", "vqa.jsonl", "--out", "run"]
