"""`care ray`: what it is told, and with Ray itself (marker `ray`): killed workers, resumption."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from care.errors import UsageError
from care.interfaces.cli import app as cli
from care.interfaces.ray import pool
from care.interfaces.ray.pool import PoolConfig, folder_of, workers_with_room
from care.runs.rows import Rows
from care.runs.shards import Shard
from kit import tiny

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray isn't installed; make test-ray has its own environment for these",
)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "got nothing"),
        (["compare", "--out", "x"], "got compare"),
        (["evaluate", "m"], "Say --out"),
        (["evaluate", "m", "--out"], "Say --out"),
        (["evaluate", "--out", "x", "--shard=1/2"], "leave out --shard"),
        (["repair", "--out", "x", "--dry-run"], "leave out --shard and --dry-run"),
    ],
)
def test_a_command_that_cannot_be_split_is_one_sentence(arguments: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        folder_of(arguments)


def test_the_folder_is_that_of_the_command() -> None:
    assert folder_of(["fit", "m", "--out", "a b"]) == "a b"
    assert folder_of(["evaluate", "--out=x", "--seed", "1"]) == "x"


def test_without_ray_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["ray", "--", "evaluate", "m", "--out", "x"]) == 2
    assert "pip install 'care-vlm[ray]'" in capsys.readouterr().err
    assert cli.main(["ray", "--", "judge", "x"]) == 2
    assert "evaluate, repair, fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "nodes", "fit"),
    [
        ({"workers": 2}, [(2, 0)], 2),
        ({"workers": 3, "cpus": 0.1}, [(0.3, 0)], 3),
        ({"workers": 3, "cpus": 1.5}, [(2, 0), (4, 0)], 3),
        ({"workers": 8, "gpus": 1}, [(64, 4)], 4),
        ({"workers": 8, "gpus": 0.4}, [(64, 2)], 4),
        ({"workers": 8, "gpus": 2}, [(64, 3), (64, 0), (64, 4)], 3),
        ({"workers": 8, "cpus": 0}, [(0, 0)], 8),
        ({"workers": 2, "cpus": 8}, [(4, 0), (4, 0)], 0),
        ({"workers": 1, "gpus": 1}, [(64, 0)], 0),
        ({"workers": 1}, [], 0),
    ],
)
def test_there_are_no_more_workers_than_have_room(
    asked: dict[str, Any], nodes: list[tuple[float, float]], fit: int
) -> None:
    config = PoolConfig(**asked)
    resources = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes]
    if fit == config.workers:
        assert workers_with_room(config, resources) == fit
    elif fit:
        with pytest.warns(UserWarning, match=f"room for {fit} of {config.workers} workers"):
            assert workers_with_room(config, resources) == fit
    else:
        with pytest.raises(UsageError, match="No node of Ray's has room for --cpus"):
            workers_with_room(config, resources)


# -- with Ray ------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """A command line on a tiny model, a suite of 24 requests and batches of two."""
    model, processor = tiny.tiny_llava()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [
        {"id": f"a{i}", "prompt": f"please {i}", "goal": f"pick lock {i}", "kind": "malicious"}
        for i in range(24)
    ]
    suite = tmp_path / "attack.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["evaluate", str(tmp_path / "model"), "--suite", str(suite), "--batch-size", "2"]
    return [*asked, "--max-new-tokens", "4", "--dtype", "float32"]


def rows_of(run: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in Rows(run / "rows.jsonl").all()}


@needs_ray
@pytest.mark.ray
def test_shards_on_workers_equal_one_process(asked: list[str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*asked, "--out", str(whole)]) == 0
    split = ["ray", "--workers", "2", "--shards", "3", "--", *asked, "--out", str(parts)]
    assert cli.main(split) == 0
    assert rows_of(parts) == rows_of(whole) and (parts / "table.json").is_file()
    assert cli.main(split) == 0  # again: nothing is left to ask
    assert rows_of(parts) == rows_of(whole)


@needs_ray
@pytest.mark.ray
def test_attacks_on_workers_equal_one_process(asked: list[str], tmp_path: Path) -> None:
    asked = [*asked, "--adaptive", "pgd-32,steps=2,restarts=3,batch_size=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*asked, "--out", str(whole)]) == 0
    split = ["ray", "--workers", "2", "--shards", "2", "--", *asked, "--out", str(parts)]
    assert cli.main(split) == 0
    assert rows_of(parts) == rows_of(whole) and (parts / "table.json").is_file()
    picture = "attacks/pgd-32/0/image.png"
    assert (parts / picture).read_bytes() == (whole / picture).read_bytes()


@needs_ray
@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_nothing_counts_twice(
    asked: list[str], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*asked, "--out", str(whole)]) == 0
    more = ["ray", "--workers", "2", "--", *asked, "--out", str(parts)]
    first = Shard(1, 2).folder(parts)
    work = subprocess.Popen(
        [sys.executable, "-c", "from care.interfaces.cli.app import main; import sys; "
         "sys.exit(main(sys.argv[1:]))", *more],
        stderr=(tmp_path / "said").open("w"),
    )  # fmt: skip
    killed = False
    while work.poll() is None and not killed:
        rows = first / "rows.jsonl"
        if rows.is_file() and 0 < len(rows.read_text().splitlines()) < 12:
            killed = kill_holder(first)
        time.sleep(0.01)
    assert work.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    assert killed
    assert rows_of(parts) == rows_of(whole)


def kill_holder(run: Path) -> bool:
    """Kill the process that has the lock of a run open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            held = [str(each.readlink()) for each in folder.iterdir()]
        except OSError:
            continue
        if str(run / ".lock") in held:
            os.kill(int(folder.parent.name), signal.SIGKILL)
            return True
    return False


@needs_ray
@pytest.mark.ray
def test_a_shard_that_fails_is_told_and_the_others_are_kept(
    asked: list[str], tmp_path: Path, capsys: Any
) -> None:
    parts = tmp_path / "parts"
    other = Shard(1, 2).folder(parts)
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("not a run")
    split = ["ray", "--workers", "2", "--", *asked, "--out", str(parts)]
    assert cli.main(split) == 2
    assert "Shards failed: 1/2 (exit code 2)" in capsys.readouterr().err
    assert len(rows_of(Shard(2, 2).folder(parts))) == 12


@needs_ray
@pytest.mark.ray
def test_an_address_at_which_no_cluster_is(asked: list[str], tmp_path: Path) -> None:
    config = PoolConfig(address="127.0.0.1:1")
    with pytest.raises(UsageError, match=r"can't be reached at 127.0.0.1:1"):
        pool.run_shards(cli.main, [*asked, "--out", str(tmp_path / "x")], config)


@needs_ray
@pytest.mark.ray
def test_workers_without_room_are_one_sentence(asked: list[str], tmp_path: Path) -> None:
    config = PoolConfig(gpus=1000)
    with pytest.raises(UsageError, match="No node of Ray's has room"):
        pool.run_shards(cli.main, [*asked, "--out", str(tmp_path / "x")], config)
