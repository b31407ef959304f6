"""The main job on a tiny model: it runs whole, and a job that is killed ends with the same numbers.

The tiny model talks nonsense, so a judge made up here decides which of its answers are harmful.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

import tiny
from care import material, pipeline
from care.jobs import Job
from care.judges import Verdict
from care.rows import Rows
from care.runs import Run

COMPARED = ("suites", "outcomes", "controls", "diagnosis", "repair", "examples", "attribution")
"""Parts of a report that don't tell how long it took."""


class MadeUpJudge:
    """Refused or not by the words of the goal and answer; harmless requests mostly aren't."""

    def __call__(self, goals, answers):
        drawn = [zlib.crc32(f"{g}/{a}".encode()) % 10 for g, a in zip(goals, answers, strict=True)]
        return [
            Verdict(refused=number < (1 if "good" in goal else 4), degenerate=False, on_goal=True)
            for goal, number in zip(goals, drawn, strict=True)
        ]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """120 attacks and 120 harmless requests, half of either with a picture."""
    for place in range(20):
        tiny.picture(place).save(tmp_path / f"{place}.png")
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
            for i in range(120)
        ]
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny.tiny_vlm()
    monkeypatch.setattr(pipeline, "load_model", lambda job: vlm)
    monkeypatch.setattr(pipeline, "make_judge", lambda job: MadeUpJudge())
    monkeypatch.setattr(material, "Judge", MadeUpJudge)


def parts(tree: dict) -> dict:
    return {name: tree[name] for name in COMPARED}


def test_a_job_killed_again_and_again_ends_with_the_same_numbers(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after a write, at places drawn at random over the whole job."""
    written, until = 0, 10**9

    def counting(write):
        def wrapped(*arguments, **named):
            nonlocal written
            write(*arguments, **named)
            written += 1
            if written == until:
                raise KeyboardInterrupt

        return wrapped

    monkeypatch.setattr(Rows, "add", counting(Rows.add))
    monkeypatch.setattr(Run, "record", counting(Run.record))
    options = {"test_length": 8, "batch_size": 8, "max_new_tokens": 4, **files}
    whole = pipeline.repair(Job(out=tmp_path / "whole", **options))
    outcomes = whole["outcomes"]["attacks"]["before"]
    assert outcomes["harmful"] > 0 and outcomes["refused"] > 0
    places = np.sort(np.random.default_rng(0).choice(written - 1, 8, replace=False)) + 1
    kills = 0
    for steps in np.diff(places, prepend=0):
        written, until = 0, max(1, int(steps))
        try:
            pipeline.repair(Job(out=tmp_path / "killed", resume=True, **options))
        except KeyboardInterrupt:
            kills += 1
    until = 10**9
    again = pipeline.repair(Job(out=tmp_path / "killed", resume=True, **options))
    assert kills >= 6
    assert parts(again) == parts(whole)
    assert (tmp_path / "killed" / "repair").is_dir()
