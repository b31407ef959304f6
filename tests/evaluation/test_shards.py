"""An evaluation in shards: the same rows and table as in one process, whatever was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from care.errors import UsageError
from care.evaluation import runner
from care.evaluation.config import EvaluationConfig
from care.interfaces.cli import app as cli
from care.runs.rows import Rows
from kit.evaluate_command import ARGUMENTS, world  # noqa: F401

pytestmark = pytest.mark.slow

ASKED = [*ARGUMENTS[:-2], "--repair", "care", "--batch-size", "3"]


def rows_of(run: str) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in Rows(Path(run, "rows.jsonl")).all()}


def table_of(run: str) -> dict[str, Any]:
    tree = json.loads(Path(run, "table.json").read_text())
    tree["run"].pop("created", None)
    return {key: tree[key] for key in ("suites", "comparisons")}


def in_shards(out: str, count: int, *more: str) -> None:
    for number in range(count, 0, -1):
        assert cli.main([*ASKED, "--out", out, "--shard", f"{number}/{count}", *more]) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_shards_equal_one_process(count, world, capsys):
    assert cli.main([*ASKED, "--out", "whole"]) == 0
    whole = sorted(batch for vlm in world for batch in vlm.batches)
    in_shards("parts", count)
    assert sorted(batch for vlm in world[1:] for batch in vlm.batches) == whole
    capsys.readouterr()
    assert cli.main(["merge", "parts"]) == 0
    assert "Taken: 64 judged answers" in capsys.readouterr().out
    assert rows_of("parts") == rows_of("whole")
    assert table_of("parts") == table_of("whole")
    assert cli.main([*ASKED, "--out", "parts", "--resume"]) == 0  # there is nothing left to ask
    assert not world[-1].batches


def test_a_killed_shard_goes_on_and_is_counted_once(world, monkeypatch, capsys):
    assert cli.main([*ASKED, "--out", "whole"]) == 0
    judge, calls = runner._judge, []

    def killed(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(*given)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "_judge", killed)
        assert cli.main([*ASKED, "--out", "parts", "--shard", "1/2"]) == 130
    assert cli.main([*ASKED, "--out", "parts", "--shard", "2/2"]) == 0
    capsys.readouterr()
    assert cli.main(["merge", "parts"]) == 0
    assert "Not finished: shards 1/2" in capsys.readouterr().out
    assert not Path("parts/table.json").exists()
    in_shards("parts", 2, "--resume")
    assert cli.main(["merge", "parts"]) == 0
    assert rows_of("parts") == rows_of("whole")


def test_what_is_missing_is_asked_by_the_job_itself(world):
    assert cli.main([*ASKED, "--out", "whole"]) == 0
    assert cli.main([*ASKED, "--out", "parts", "--shard", "2/3"]) == 0
    assert cli.main(["merge", "parts"]) == 0
    assert cli.main([*ASKED, "--out", "parts", "--resume"]) == 0
    assert rows_of("parts") == rows_of("whole")
    one, _, rest = (sum(map(len, vlm.batches)) for vlm in world)
    assert 0 < rest < one


def test_what_is_chosen_by_all_answers_is_not_split():
    with pytest.raises(UsageError, match="joined is chosen by the answers to all others"):
        EvaluationConfig(adaptive=("templates", "openings", "joined"), shard="1/2")
