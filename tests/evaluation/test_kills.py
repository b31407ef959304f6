"""Killed at twenty random moments, in the middle of a write too, a job ends with the same table."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from care.evaluation.rejudge import open_verdicts, rejudge
from care.evaluation.runner import evaluate
from care.evaluation.scorecard import scorecard
from care.judges.base import Verdict
from care.judges.rules import RulesJudge
from care.runs.run import Run
from kit.evaluations import SUITES, FakeDefense, FakeVLM, StrictJudge
from kit.kills import ended, kills_told_by
from kit.scripted_judge import Scripted

pytestmark = pytest.mark.slow

KILLS = 20


class NoRules(RulesJudge):
    """Knows no refusal: the real classifier would be trained anew in every child."""

    def __call__(self, goals: Any, responses: Any) -> list[Verdict]:
        return [Verdict(refused=False, degenerate=False, on_goal=False) for _ in responses]


def whole_job(path: Path) -> dict[str, Any]:
    """Answer, judge, judge again, and the scorecard; what is done already isn't done again."""
    vlm = FakeVLM()
    with Run(path, resume=True, config={"seed": 0}) as run:
        evaluate(
            vlm,  # pyright: ignore
            SUITES,
            [None, FakeDefense(), FakeDefense("late", touches="decision")],
            judge=StrictJudge(vlm),
            run=run,
            batch_size=2,
        )
        verdicts = open_verdicts(run)
        try:
            judge = Scripted(fails="do 4")
            judge.rules = NoRules()
            rejudge(run, judge, verdicts)
            return scorecard(run.rows(), verdicts.all(), primary="scripted")
        finally:
            verdicts.close()


def die_while_writing(moment: int, share: float) -> None:
    """Kill this process in its `moment`th write, with a share of it on disk."""
    write, left = os.write, [moment]

    def torn(file: int, data: Any) -> int:
        left[0] -= 1
        if left[0] > 0:
            return write(file, data)
        write(file, bytes(data)[: int(share * len(data))])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    os.write = torn


def killed(path: Path) -> int:
    """Run the job in children that kill themselves; how many were killed before one ended."""
    draw = random.Random(3)
    for kills in range(KILLS + 1):
        # Every attempt begins with a few writes of the manifest.
        moment, share = draw.randint(1, 9), draw.random()

        def attempt(moment: int = moment if kills < KILLS else 0, share: float = share) -> None:
            if moment:
                die_while_writing(moment, share)
            whole_job(path)

        if ended(attempt):
            return kills
    raise AssertionError("it never got to the end")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_at_twenty_random_moments_it_ends_with_the_same_table(tmp_path: Path) -> None:
    assert kills_told_by(__file__, tmp_path / "killed") == KILLS
    assert whole_job(tmp_path / "killed") == whole_job(tmp_path / "whole")
    for name in ("rows.jsonl", "verdicts.jsonl"):
        files = [tmp_path / folder / name for folder in ("killed", "whole")]
        rows = [sorted(file.read_text().splitlines()) for file in files]
        assert rows[0] == rows[1]


if __name__ == "__main__":
    print(json.dumps({"kills": killed(Path(sys.argv[1]))}))
