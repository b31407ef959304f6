"""Commands on suites: lists, facts, examples, and the search for goals on both sides."""

import json

import pytest

from care.data import tables
from care.data.registry import REGISTRY
from care.data.small_world import suites as world
from care.interfaces.cli import app as cli
from kit import suite_copies as copies


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "_read_parquet", copies.read_parquet_stand_in)


def write(path, *goals, kind="malicious"):
    lines = [json.dumps({"prompt": goal, "kind": kind}) for goal in goals]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_suites_are_listed(capsys):
    assert cli.main(["list", "suites"]) == 0
    shown = capsys.readouterr().out
    assert "beside-image" in shown and "jailbreakv-mini" in shown and "by hand" in shown
    assert all(name in shown for name in REGISTRY)
    assert cli.main(["list", "suites", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*world.NAMES, *REGISTRY]
    assert {row["role"] for row in rows} == {"attack", "utility", "over_refusal"}
    for row in rows[: len(world.NAMES)]:
        for split, n in row["examples"].items():
            assert n == len(world.load(row["name"], split))
    for row in rows[len(world.NAMES) :]:
        assert row["licence"] and row["revision"] and row["source"].startswith("https://")


def test_a_suite_of_the_small_world_is_shown_and_written(tmp_path, capsys):
    assert cli.main(["show", "suite", "beside-image", "--split", "fit", "-n", "2"]) == 0
    assert "2 of 60" in capsys.readouterr().out
    file = tmp_path / "some" / "mine.jsonl"
    assert cli.main(["show", "suite", "vqa", "--out", str(file)]) == 0
    capsys.readouterr()
    assert cli.main(["show", "suite", str(file)]) == 0
    assert "10 of 60" in capsys.readouterr().out
    assert cli.main(["show", "suite", "vqa", "--limit", "3"]) == 0
    assert capsys.readouterr().out.count("vqa-test-") == 3
    assert cli.main(["show", "suite", "vqa", "--out", str(tmp_path / "mine.txt")]) == 2


def test_a_published_suite_is_shown_with_its_facts(tmp_path, capsys):
    copy = str(copies.make("mmbench").write(tmp_path / "copy"))
    assert cli.main(["show", "suite", "mmbench", "--path", copy]) == 0
    shown = capsys.readouterr().out
    source = REGISTRY["mmbench"].source
    for fact in (source.page, source.revision, source.licence, "CircularEval", "1000007"):
        assert fact in shown.replace("7-1", "1000007")
    file = tmp_path / "out.jsonl"
    assert cli.main(["show", "suite", "mmbench", "--path", copy, "--out", str(file)]) == 0
    assert len(file.read_text().splitlines()) == 3


def test_facts_alone_fetch_nothing(capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", None)
    assert cli.main(["show", "suite", "figstep", "--facts"]) == 0
    assert "differs: pictures are rendered here" in capsys.readouterr().out
    assert cli.main(["show", "suite", "vqa", "--facts"]) == 2


def test_what_is_by_hand_is_told(capsys, tmp_path):
    assert cli.main(["show", "suite", "jailbreakv", "--facts"]) == 0
    shown = capsys.readouterr().out
    assert "docs.google.com/forms" in shown and str(tmp_path / "cache" / "suites") in shown


def test_check_passes_where_goals_differ(tmp_path, capsys):
    fit = write(tmp_path / "fit.jsonl", "Bake a cake", "Fold a paper hat")
    test = write(tmp_path / "test.jsonl", "Whistle a song")
    assert cli.main(["check", "suites", fit, test]) == 0
    assert "0 of 1 examples share a goal" in capsys.readouterr().out


def test_check_shows_the_pairs_and_exits_with_1(tmp_path, capsys):
    fit = write(tmp_path / "fit.jsonl", "Bake a cake", "Fold a red paper hat")
    first = write(tmp_path / "first.jsonl", "bake CAKES", "Whistle a song")
    second = write(tmp_path / "second.jsonl", "Fold a paper hat")
    assert cli.main(["check", "suites", fit, first, second]) == 1
    shown = capsys.readouterr().out
    assert "fit/fit-0001" in shown and "first/first-0001" in shown
    assert f"{first}: 1 of 2 examples" in shown.replace("\n", "")
    assert cli.main(["check", "suites", fit, second, "--threshold", "0.9"]) == 0
    capsys.readouterr()
    assert cli.main(["check", "suites", fit, first, second, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == 0.6
    assert [round(pair["similarity"], 2) for pair in found["pairs"]] == [1.0, 0.75]


def test_the_splits_of_the_small_world_share_no_goal(capsys):
    attacks = [name for name in world.NAMES if world.role(name) == "attack" and "pgd" not in name]
    for name in attacks:
        assert cli.main(["check", "suites", name, name, "--threshold", "1"]) == 0
        capsys.readouterr()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "direct"],
        ["check", "direct", "nothing"],
        ["check", "direct", "direct", "--threshold", "2"],
        ["show", "nothing"],
        ["show", "vqa", "--limit", "0"],
        ["show", "vqa", "--path", "."],
    ],
)
def test_wrong_use_exits_with_2(arguments, capsys):
    assert cli.main(["suites", *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err
