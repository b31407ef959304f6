"""Attacks in shards: the pictures and rows of one process, and every step descended once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from care.attacks import pgd
from care.evaluation import job
from care.interfaces.cli import app as cli
from care.runs.rows import Rows
from care.runs.shards import Shard, ShardTurns
from kit import tiny

STEPS = 2
UNIVERSAL = f"pgd-32,steps={STEPS},restarts=3,batch_size=2"
EACH = f"pictured,steps={STEPS},restarts=2,each=1,limit=2,kappa=16,suite="


def test_turns_deal_everything_out_once() -> None:
    parts = [ShardTurns(Shard(number, 3)) for number in (1, 2, 3)]
    for count in (3, 1, 5):
        dealt = [part.next(count) for part in parts]
        assert sorted(n for part in dealt for n in part) == list(range(count))
    assert [part.next(3) for part in parts] == [[0], [1], [2]]  # where the last ones ended


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line on a tiny model with six requests, and two attacks that are made."""
    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_llava()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [
        {"id": f"a{i}", "prompt": f"please {i}", "goal": f"pick lock {i}", "kind": "malicious"}
        for i in range(6)
    ]
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(2):
        tiny.picture(number).save(f"{number}.png")
    drawn = [row | {"id": f"d{i}", "images": [f"{i}.png"]} for i, row in enumerate(rows[:2])]
    Path("drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))
    monkeypatch.setattr(job, "told", lambda *given: "")  # which measures the pace of descents
    words = ["evaluate", "model", "--suite", "bad.jsonl", "--batch-size", "4", "--dtype", "float32"]
    words += ["--max-new-tokens", "3", "--adaptive", UNIVERSAL, "--adaptive", f"{EACH}drawn.jsonl"]
    return words


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step of a descent."""
    found: list[int] = []
    advance = pgd.advance
    monkeypatch.setattr(pgd, "advance", lambda *a: found.append(1) or advance(*a))
    return found


def rows_of(run: str) -> dict[str, Any]:
    """Rows without what tells in which folder a picture lies."""
    return {row["key"]: row for row in Rows(Path(run, "rows.jsonl")).all()}


def pictures_of(run: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(Path(run, "attacks").rglob("*.png"))
    }


@pytest.mark.slow
def test_attacks_of_shards_are_those_of_one_process(
    asked: list[str], steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*asked, "--out", "whole"]) == 0
    once = STEPS * (3 + 2 * 2)
    assert len(steps) == once and len(pictures_of("whole")) == 3
    steps.clear()
    capsys.readouterr()
    assert cli.main([*asked, "--out", "parts", "--shard", "1/2"]) == 0
    assert "those of shards 2/2 aren't" in capsys.readouterr().out
    assert not rows_of("parts/shards/1-of-2")
    assert cli.main(["merge", "parts"]) == 0
    assert "Not finished: shards 1/2, 2/2" in capsys.readouterr().out
    assert cli.main([*asked, "--out", "parts", "--shard", "2/2"]) == 0  # goes on at once
    assert cli.main([*asked, "--out", "parts", "--shard", "1/2", "--resume"]) == 0
    assert len(steps) == once
    assert cli.main(["merge", "parts"]) == 0
    assert pictures_of("parts") == pictures_of("whole")
    assert rows_of("parts") == rows_of("whole")
    told = [json.loads(Path(run, "table.json").read_text()) for run in ("whole", "parts")]
    assert told[0]["threats"] == told[1]["threats"] and told[0]["suites"] == told[1]["suites"]
    assert cli.main([*asked, "--out", "parts", "--resume"]) == 0  # nothing is made or asked again
    assert len(steps) == once and rows_of("parts") == rows_of("whole")


@pytest.mark.slow
def test_one_process_goes_on_with_what_shards_have_made(
    asked: list[str], steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main([*asked, "--out", "whole"]) == 0
    steps.clear()
    advance = pgd.advance

    def killed(*arguments: Any) -> Any:
        if len(steps) == 3:
            raise KeyboardInterrupt
        return advance(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pgd, "advance", killed)
        assert cli.main([*asked, "--out", "parts", "--shard", "1/2"]) == 130
    assert cli.main([*asked, "--out", "parts", "--resume"]) == 0
    assert len(steps) == STEPS * (3 + 2 * 2)  # no step twice
    assert pictures_of("parts") == pictures_of("whole") and rows_of("parts") == rows_of("whole")


@pytest.mark.slow
def test_attempts_at_an_image_are_split(tmp_path: Path, asked: list[str], steps: list[int]) -> None:
    command = ["attack", "model", "--requests", "bad.jsonl", "--steps", "2", "--restarts", "3"]
    command += ["--batch-size", "2", "--dtype", "float32"]
    assert cli.main([*command, "--out", "whole"]) == 0
    steps.clear()
    for number in (1, 2):
        assert cli.main([*command, "--out", "parts", "--shard", f"{number}/2"]) == 0
    assert not Path("parts/image.png").exists() and len(steps) == 6
    assert cli.main([*command, "--out", "parts", "--resume"]) == 0
    assert len(steps) == 6
    assert Path("parts/image.png").read_bytes() == Path("whole/image.png").read_bytes()
