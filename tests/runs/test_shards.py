"""Which part of a job a process does, and putting parts together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.errors import DataError, UsageError
from care.runs.merging import COUNTS, DONE, finished, merge
from care.runs.run import ROWS, Run
from care.runs.shards import Shard, shards_in

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}


def a_part(out: Path, shard: Shard, rows: dict[str, int], done: bool = True, **config: Any) -> Path:
    """A run of a part with these answers and one kept batch."""
    with Run(shard.folder(out), resume=True, config={"seed": 0} | config) as run:
        run.pin("suites", {"a": "1"})
        run.record(shard=str(shard), told="x")
        new = [{"key": key, "value": value} for key, value in rows.items() if not run.has(key)]
        run.answers.add(*new)
        run.add(*new)
        with run.stage("evaluation"):
            place = run.path / "batches" / "material" / f"{shard.number}.safetensors"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"numbers")
        if done:
            run.record(**finished(run))
    return shard.folder(out)


@given(st.integers(1, 40), st.integers(0, 500))
def test_every_batch_is_in_one_shard(count: int, place: int) -> None:
    shards = [Shard(number + 1, count) for number in range(count)]
    assert sum(shard.takes(place) for shard in shards) == 1


@pytest.mark.parametrize(
    ("environment", "shard"), [(TORCHRUN, (3, 4)), (SLURM, (1, 3)), (ARRAY | SLURM, (7, 8))]
)
def test_launchers_say_which_it_is(environment: dict[str, str], shard: tuple[int, int]) -> None:
    assert Shard.of("auto", environment) == Shard(*shard)
    assert Shard.of(" 2/8", environment) == Shard(2, 8)


@pytest.mark.parametrize(
    ("said", "environment", "told"),
    [
        ("auto", {}, "none of SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT; RANK"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK, WORLD_SIZE, which are x, 2"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_MIN": ""}, "must be numbers"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "got 3/2"),
        ("0/2", {}, "got 0/2"),
        ("3/2", {}, "got 3/2"),
        ("2", {}, "written I/K, as 2/8, or auto, got '2'"),
        ("-1/2", {}, "written I/K"),
    ],
)
def test_what_is_no_shard_is_one_sentence(
    said: str, environment: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        Shard.of(said, environment)


def test_parts_become_one_run_in_any_order_and_again(tmp_path: Path) -> None:
    a_part(tmp_path, Shard(2, 3), {"b": 2}, done=False)
    a_part(tmp_path, Shard(1, 3), {"a": 1})
    (tmp_path / "shards" / "notes").mkdir()
    assert list(shards_in(tmp_path)) == [Shard(1, 3), Shard(2, 3)]
    merged = merge(tmp_path)
    assert (merged.done, merged.missing) == ((Shard(1, 3),), (Shard(2, 3), Shard(3, 3)))
    assert (merged.rows, merged.batches, merged.whole) == (2, 2, False)
    a_part(tmp_path, Shard(2, 3), {"b": 2, "c": 3})
    a_part(tmp_path, Shard(3, 3), {"d": 4})
    merged = merge(tmp_path)
    assert (merged.rows, merged.batches, merged.whole) == (4, 1, True)
    assert merge(tmp_path).batches == 0
    with Run(tmp_path, resume=True, config={"seed": 0}) as run:
        assert {row["key"]: row["value"] for row in run.rows()} == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert len(run.answers) == 4 and run.manifest["told"] == "x"
        assert run.manifest["pinned"] == {"suites": {"a": "1"}}
        assert not {"shard", DONE, COUNTS} & run.manifest.keys()
        (stage,) = run.stages
        assert stage["attempts"] == 4 and stage["status"] == "done"
    kept = sorted(path.name for path in (tmp_path / "batches" / "material").iterdir())
    assert kept == ["1.safetensors", "2.safetensors", "3.safetensors"]


def test_a_part_at_work_is_read_and_never_written_to(tmp_path: Path) -> None:
    part = a_part(tmp_path, Shard(1, 1), {"a": 1}, done=False)
    rows, whole = part / ROWS, b'{"key": "b", "value": 2}\n'
    with rows.open("ab", buffering=0) as writing:
        writing.write(whole[:9])  # as far as another process may see of one write
        assert merge(tmp_path).rows == 1
        writing.write(whole[9:])
    assert rows.read_bytes().endswith(whole)
    assert merge(tmp_path).rows == 2


def test_a_part_that_has_lost_rows_is_not_finished(tmp_path: Path) -> None:
    part = a_part(tmp_path, Shard(1, 1), {"a": 1, "b": 2})
    (part / ROWS).write_bytes(b"".join((part / ROWS).read_bytes().splitlines(True)[:1]))
    assert merge(tmp_path).missing == (Shard(1, 1),)
    a_part(tmp_path, Shard(1, 1), {"a": 1}, done=False)
    with Run(part, resume=True, config={"seed": 0}) as run:  # earlier versions didn't count
        run.record(**{COUNTS: {}})
    assert merge(tmp_path).whole


def test_what_a_merged_run_did_since_is_kept(tmp_path: Path) -> None:
    a_part(tmp_path, Shard(1, 2), {"a": 1})
    merge(tmp_path)
    with Run(tmp_path, resume=True, config={"seed": 0}) as run, run.stage("material"):
        run.record(judges={"other": {"a": 1}}, told="y")
    a_part(tmp_path, Shard(2, 2), {"b": 2})
    assert merge(tmp_path).whole
    with Run(tmp_path, resume=True, config={"seed": 0}) as run:
        assert run.manifest["judges"] == {"other": {"a": 1}} and run.manifest["told"] == "y"
        assert [stage["name"] for stage in run.stages] == ["evaluation", "material"]
        assert run.stage_done("material")


def test_what_does_not_belong_together_is_not_begun(tmp_path: Path) -> None:
    first = a_part(tmp_path, Shard(1, 2), {"a": 1})
    with pytest.raises(UsageError, match=r"Shard 2/2 can't be begun: .*\(seed: 0 then, 1"):
        a_part(tmp_path, Shard(2, 2), {"b": 1}, seed=1)
    with pytest.raises(UsageError, match=r"Shard 2/3 can't be begun: .* split into 2 \(1/2 is"):
        a_part(tmp_path, Shard(2, 3), {"b": 1})
    assert [path.name for path in first.parent.iterdir()] == ["1-of-2"]
    with Run(first, resume=True, config={"seed": 0}) as run:  # by itself it's what it was
        assert run.has("a")


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    out = tmp_path / "job"
    with pytest.raises(UsageError, match="no shards in"):
        merge(out)
    a_part(out, Shard(1, 2), {"a": 1})
    other = a_part(tmp_path / "other", Shard(2, 2), {"b": 1}, seed=1)
    other = other.rename(out / "shards" / other.name)  # copied together, or begun at once
    with pytest.raises(UsageError, match=r"Shards 1/2 and 2/2 are of different jobs \(seed: 0"):
        merge(out)
    other.rename(other.with_name("away"))
    other = a_part(out, Shard(2, 2), {"a": 7})
    with pytest.raises(DataError, match="holds another row 'a'"):
        merge(out)
    other.rename(other.with_name("2-of-3"))
    with pytest.raises(UsageError, match="split into 2 and 3"):
        merge(out)
