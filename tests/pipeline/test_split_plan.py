"""Named suites: by goal into splits, near goals together, and none on both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from care.data.contamination import leaks
from care.data.example import Example, Suite
from care.data.registry import REGISTRY
from care.errors import DataError, UsageError
from care.evaluation.config import StoredConfig
from care.pipeline.config import RepairJob, job_of
from care.pipeline.split_plan import NamedSuites, split_by_goal
from care.pipeline.splits import digests_of, plan_of, suites_of
from care.typed import from_tree
from kit import suite_copies as copies
from kit import tiny
from kit.suite_copies import own_cache  # noqa: F401

WORDS = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
]


def goals(count: int, start: int = 0) -> list[str]:
    """Goals of which no two are near: three words of thirteen each, in another order."""
    found = [
        f"{a} {b} {c}"
        for i, a in enumerate(WORDS)
        for b in WORDS[i + 1 :]
        for c in ("xylo", "yankee")
    ]
    return found[start : start + count]


def write(path: Path, said: Sequence[str], kind: str, **more: Any) -> str:
    lines = [
        {"id": f"{place}", "prompt": f"Tell me {goal}", "goal": goal, "kind": kind} | more
        for place, goal in enumerate(said)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def named(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """Two suites of attacks, one of harmless requests, one to test and one of utility."""
    said = goals(120)
    return {
        "attacks": (
            write(tmp_path / "one.jsonl", said[:40], "malicious"),
            write(tmp_path / "two.jsonl", said[40:80], "malicious"),
        ),
        "benign": (write(tmp_path / "kind.jsonl", said[:40], "benign"),),
        "test": (write(tmp_path / "new.jsonl", said[100:110], "malicious"),),
        "utility": (write(tmp_path / "useful.jsonl", said[40:80], "benign", references=["a"]),),
    }


def sizes(found: Mapping[Any, Sequence[Suite]]) -> dict[str, dict[str, int]]:
    return {split: {s.name: len(s) for s in suites} for split, suites in found.items()}


def test_suites_are_split_by_goal_and_those_to_test_are_whole(named: dict[str, Any]) -> None:
    found = plan_of(RepairJob(**named))
    of = sizes(found)
    assert of["fit"].keys() == {"one", "two", "kind"}
    assert of["validation"].keys() == {"one", "two", "kind", "useful"}
    assert of["test"] == of["test"] | {"new": 10}
    for name in ("one", "two", "kind", "useful"):
        assert sum(part.get(name, 0) for part in of.values()) == 40
    assert of["validation"]["useful"] < of["test"]["useful"]
    sides = [[e for suite in found[split] for e in suite] for split in ("fit", "test")]
    assert not leaks(*sides)
    roles = {suite.name: suite.role for suites in found.values() for suite in suites}
    assert roles["kind"] == "over_refusal" and roles["useful"] == "utility"


def test_where_a_goal_lies_does_not_depend_on_what_else_is_named(named: dict[str, Any]) -> None:
    more, less = plan_of(RepairJob(**named)), plan_of(RepairJob(**named | {"test": ()}))
    assert more["fit"] == less["fit"] and more["validation"] == less["validation"]


def test_goals_that_are_nearly_the_same_lie_together(tmp_path: Path) -> None:
    said = goals(60)
    near = [f"{goal} quickly" for goal in said]  # a word more
    files = {
        "attacks": (
            write(tmp_path / "one.jsonl", said, "malicious"),
            write(tmp_path / "near.jsonl", near, "malicious"),
        ),
        "benign": (write(tmp_path / "kind.jsonl", said, "benign"),),
    }
    found = plan_of(RepairJob(**files))
    for suites in found.values():
        ids = {suite.name: {e.id for e in suite} for suite in suites}
        assert ids["one"] == ids["near"] != set()


def test_goals_on_both_sides_are_refused_and_named_or_left_out(
    named: dict[str, Any], tmp_path: Path
) -> None:
    shared = [*goals(20), *goals(10, start=100)]
    named["test"] = (write(tmp_path / "new.jsonl", shared, "malicious"),)
    with pytest.raises(UsageError, match=r"--test would also be fitted on.*one/\d+ and new/\d+"):
        plan_of(RepairJob(**named))
    found = plan_of(RepairJob(**named, leaks="leave-out"))
    used = [e for split in ("fit", "validation") for suite in found[split] for e in suite]
    malicious = {e.goal for e in used if e.kind == "malicious"}
    assert not malicious & set(shared) and malicious
    assert {e.goal for e in used if e.kind == "benign"} & set(shared)  # harmless ones may be near
    named["attacks"] = named["attacks"][:1]
    named["test"] = (write(tmp_path / "all.jsonl", goals(120), "malicious"),)
    with pytest.raises(UsageError, match="Every attack to fit on or choose by"):
        plan_of(RepairJob(**named, leaks="leave-out"))


def test_the_small_world_may_be_tested_on_other_suites_too(named: dict[str, Any]) -> None:
    job = RepairJob(test=named["test"], utility=named["utility"], quick=True, test_length=8)
    found = sizes(plan_of(job))
    alone = {split: {s.name: len(s) for s in suites_of(RepairJob(quick=True, test_length=8), split)}
             for split in ("fit", "test")}  # fmt: skip
    assert found["fit"] == alone["fit"]
    assert found["test"] | alone["test"] == found["test"]
    assert found["test"]["new"] == 3 and "useful" in found["validation"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benign": "one"}, "passed for benign ones"),
        ({"attacks": "kind"}, "passed for malicious ones"),
        ({"utility": "advbench"}, "--utility names advbench, which is an attack suite"),
        ({"attacks": "xstest"}, "--attacks names xstest, which is no attack suite"),
        ({"test": "one"}, "Two of the suites are called one"),
        ({"test": "nowhere"}, "There is no suite 'nowhere'"),
    ],
)
def test_suites_of_another_role_or_twice_are_refused(
    named: dict[str, Any], change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, own_cache: None,
) -> None:  # fmt: skip
    from_copies(monkeypatch, tmp_path / "copies")
    paths = {Path(path).stem: path for part in named.values() for path in part}
    given = {name: (paths.get(value, value),) for name, value in change.items()}
    with pytest.raises((UsageError, DataError), match=message):
        plan_of(RepairJob(**named | given))


def from_copies(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Published suites are fetched from small copies of their layout."""
    from care.data.source import Source

    def fetch(source: Source, relative: str) -> Path:
        name = next(n for n, card in REGISTRY.items() if card.source.at == source.at
                    and relative in copies.make(n).tables)  # fmt: skip
        return copies.make(name).write(folder / name) / relative

    monkeypatch.setattr(Source, "fetch", fetch)


def test_pictured_harmless_requests_lie_by_their_ids(tmp_path: Path) -> None:
    """They share their words, so a goal would put all of them into one split."""
    picture = tiny.picture()
    suite = Suite(
        "asked", "utility",
        tuple(Example(f"{n}", "What is this?", images=(picture,), references=("a",), suite="asked")
              for n in range(40)),
    )  # fmt: skip
    found = split_by_goal(NamedSuites(utility=(suite,)), by_file=False)
    assert not found["fit"]
    assert 5 < len(found["validation"][0]) < 20 < len(found["test"][0]) < 35


def test_two_files_alone_are_split_goal_by_goal_as_ever(named: dict[str, Any]) -> None:
    files = {"attacks": named["attacks"][0], "benign": named["benign"][0]}
    job = RepairJob(**files)
    assert job.by_file and not RepairJob(**named).by_file
    config = job.config()
    assert {name: config[name] for name in files} == files
    assert not config.keys() & {"test", "utility", "leaks", "limit", "cuts_refusals"}
    assert config["max_new_tokens"] == 24
    assert digests_of(job, NamedSuites.of(job)).keys() == {"attacks", "benign"}
    assert digests_of(RepairJob(**named), NamedSuites.of(RepairJob(**named))).keys() == {
        "one", "two", "kind", "new", "useful"
    }  # fmt: skip


def test_what_a_manifest_states_gives_the_same_examples(named: dict[str, Any]) -> None:
    job = RepairJob(**named, limit=30, quick=True, leaks="leave-out")
    tree = json.loads(json.dumps(job.config()))
    stored = from_tree(StoredConfig, tree, "config", strict=False, what="The manifest")
    assert suites_of(job_of(stored), "test") == suites_of(job, "test")
    assert stored.named == tuple(path for part in named.values() for path in part)


def test_answers_are_as_long_as_their_judges_need() -> None:
    from care.evaluation.config import JudgingSpec
    from care.models.spec import ModelSpec

    others = JudgingSpec(("rules", "toxic-words-standin"))
    assert RepairJob(model=ModelSpec("m")).answer_length == 24
    assert RepairJob(model=ModelSpec("m"), judging=others).answer_length == 512
    assert RepairJob(judging=others).answer_length == 24
    assert RepairJob(judging=others, max_new_tokens=7).answer_length == 7
    assert RepairJob(judging=others).config()["cuts_refusals"] is False
    with pytest.raises(UsageError, match="two judges have one name"):
        RepairJob(judging=JudgingSpec(("rules", "rules")))
