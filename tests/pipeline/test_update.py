"""`care update`: half of the goals folded in, the others asked; killed, resumed, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from care.data.jsonl import read_suite
from care.defenses.repair.folding import answer_length, check_remembers
from care.defenses.repair.repair import Repair
from care.errors import FitError, UsageError
from care.evaluation.leak_check import repair_leaks
from care.interfaces.cli import app as cli
from care.models.sites import Site
from care.models.spec import ModelSpec
from care.pipeline import update as updating
from care.pipeline.config import UpdateJob
from care.runs.rows import Rows
from care.runs.spec import RunSpec
from kit import tiny
from kit.jobs import MadeUpJudge, own_files, tiny_parts  # noqa: F401


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repair of the tiny model, saved."""
    folder = tmp_path_factory.mktemp("fitted")
    files = own_files(folder, 60)
    attacks, benign = read_suite(files["attacks"], "attack"), read_suite(files["benign"], "utility")
    repair = Repair.fit(
        tiny.tiny_vlm(), attacks, benign, sites=[Site(2, "layer_out")], judge=MadeUpJudge(),
        batch_size=16, max_new_tokens=4,
    )  # fmt: skip
    return repair.save(folder / "repair")


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "rules_for", lambda model: MadeUpJudge())


def new_attacks(folder: Path, count: int = 40, name: str = "novel") -> Path:
    path = folder / f"{name}.jsonl"
    lines = [{"prompt": f"worse thing {n}?", "goal": f"worse {name} {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def a_job(fitted: Path, attacks: Path, out: Path, resume: bool = False, **more) -> UpdateJob:
    return UpdateJob(repair=fitted, attacks=attacks, run=RunSpec(out, resume, 0, 16), **more)


def test_answers_are_as_long_as_those_that_were_fitted_on(fitted):
    repair = Repair.load(fitted)
    assert answer_length(repair) == 4  # the job above asks for no other
    facts = {k: v for k, v in repair.manifest["fitted_on"].items() if k != "max_new_tokens"}
    older = replace(repair, manifest=repair.manifest | {"fitted_on": facts})
    assert answer_length(older) == 24


@pytest.mark.slow
def test_half_is_folded_in_and_the_other_half_asked(fitted, tmp_path):
    attacks = new_attacks(tmp_path)
    benign = tmp_path / "fine.jsonl"
    lines = [{"prompt": f"good deed {n}?", "goal": f"good {n + 500}"} for n in range(24)]
    benign.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {path: path.read_bytes() for path in fitted.iterdir()}
    job = a_job(fitted, attacks, tmp_path / "out", benign=benign, curve="2,1,999")
    with pytest.warns(UserWarning, match="so the curve to 999 ends there, as 'after'"):
        found, card = updating.update(job)
    after = Repair.load(tmp_path / "out" / "repair", tiny.tiny_vlm())
    check_remembers(after)
    assert {path: path.read_bytes() for path in fitted.iterdir()} == before
    assert found.held_out and found.asked == 20 and found.p is not None and not found.leaking
    assert 8 <= found.folded.complied < 20 and found.folded.answered > 8
    assert found.folded.families == {"novel": found.folded.complied}
    assert any("novel" in each.opened_after for each in found.channels)
    assert not any("novel" in each.opened_before for each in found.channels)
    assert [m.reads for m in found.monitors] == [m.reads for m in after.monitors]
    # The curve stops at what there is; each count is one more row.
    assert [list(suite.defenses) for suite in card.suites] == [
        ["none", "before", "after 1", "after 2", "after"]
    ] * 2
    assert (tmp_path / "out" / "update.json").exists()
    asked = json.loads((tmp_path / "out" / "material.json").read_text())
    assert asked["max_new_tokens"] == 4  # as the fit's, since no other length was asked for
    assert (tmp_path / "out" / "table.json").exists()
    # What was folded in is told, so that nobody tests on it, and what was asked isn't in it.
    rows = Rows(tmp_path / "out" / "rows.jsonl")
    asked = {row["example"] for row in rows.all() if row["suite"] == "novel"}
    rows.close()
    whole = read_suite(attacks, "attack")
    tested = replace(whole, examples=tuple(e for e in whole if e.id in asked))
    assert len(asked) == 20
    assert repair_leaks({"after": tmp_path / "out" / "repair"}, [tested])["after"].found == {}
    with pytest.raises(UsageError, match="fitted on are also tested"):
        repair_leaks({"after": tmp_path / "out" / "repair"}, [whole])
    # Folded in once, there is nothing new.
    few = tmp_path / "again" / "novel.jsonl"
    few.parent.mkdir()
    folded = {e.id for e in whole if e.id not in asked}
    kept = [
        json.dumps(json.loads(line) | {"id": f"novel-{n:04d}"})
        for n, line in enumerate(attacks.read_text().splitlines(), 1)
        if f"novel-{n:04d}" in folded
    ][:9]
    few.write_text("\n".join(kept) + "\n")
    with pytest.raises(FitError, match="nothing new to fold"):
        updating.update(a_job(tmp_path / "out" / "repair", few, tmp_path / "two"))


def test_a_killed_update_ends_with_the_same_rows(fitted, tmp_path, monkeypatch):
    attacks = new_attacks(tmp_path)
    whole, _ = updating.update(a_job(fitted, attacks, tmp_path / "whole"))
    added, add = 0, Rows.add

    def killed(self, *found):
        nonlocal added
        added += 1
        add(self, *found)
        if added == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        updating.update(a_job(fitted, attacks, tmp_path / "killed"))
    monkeypatch.setattr(updating, "ask", None)  # answers to fold in are there
    again, _ = updating.update(a_job(fitted, attacks, tmp_path / "killed", resume=True))
    assert again.folded == whole.folded and again.change == whole.change
    rows = [Rows(tmp_path / name / "rows.jsonl") for name in ("whole", "killed")]
    one, other = ({row["key"]: row["outcome"] for row in each.all()} for each in rows)
    assert one == other
    for each in rows:
        each.close()


def test_of_few_goals_those_folded_in_are_asked_and_that_is_said(fitted, tmp_path, capsys):
    attacks = new_attacks(tmp_path, 12)
    found, _ = updating.update(a_job(fitted, attacks, tmp_path / "out"))
    assert not found.held_out and found.asked == 12
    waiting = found.folded.waiting.get("novel", 0)
    assert waiting == (found.folded.complied if found.folded.complied < 8 else 0)
    words = ["update", str(fitted), "--attacks", str(attacks), "--max-new-tokens", "4"]
    assert cli.main([*words, "--out", str(tmp_path / "cli")]) == 0
    shown = capsys.readouterr().out
    assert "novel" in shown and "before" in shown and "after" in shown
    assert "The attacks asked are those folded in: too few goals to keep half apart." in shown
    assert f"Folded in: {found.folded.complied} attacks that worked" in shown
    assert "The gate at 2.layer_out (text) opens for" in shown
    assert "The monitor of the request alarms above" in shown
    assert str(tmp_path / "cli" / "report.html") in shown
    assert cli.main([*words, "--out", str(tmp_path / "cli")]) == 2  # nothing is written over
    assert "isn't empty" in capsys.readouterr().err


def test_a_curve_counts_attacks_that_the_repair_has_not_seen(fitted, tmp_path):
    """A file may begin with attacks that were fitted on already."""
    old = [json.loads(line) for line in (fitted.parent / "attacks.jsonl").read_text().splitlines()]
    new = [json.loads(line) for line in new_attacks(tmp_path, 20).read_text().splitlines()]
    lines = [each | {"id": f"again {n}", "goal": f"again {n}"} for n, each in enumerate(old)] + new
    mixed = fitted.parent / "mixed.jsonl"  # beside the pictures
    mixed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, card = updating.update(a_job(fitted, mixed, tmp_path / "out", curve="1"))
    assert found.folded.known > 0 and "after 1" in card.suites[0].defenses


def test_goals_of_an_earlier_fit_are_counted(fitted, tmp_path):
    attacks = tmp_path / "rephrased.jsonl"
    lines = [{"prompt": f"worse thing {n}?", "goal": f"bad {n}"} for n in range(60)]
    attacks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, card = updating.update(a_job(fitted, attacks, tmp_path / "out"))
    assert found.held_out and 0 < found.leaking <= found.asked
    assert card.run.repair_leaks["before"].found["rephrased"].examples == found.leaking


def test_what_cannot_be_updated_is_said_before_a_model_is_loaded(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSpec, "load", None)
    attacks = new_attacks(tmp_path)
    bare = Repair.load(fitted).save(tmp_path / "bare", memory=False)
    with pytest.raises(UsageError, match="doesn't remember"):
        updating.update(a_job(bare, attacks, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for curve in ("0", "1,,2", "a", "-1"):
        with pytest.raises(UsageError, match=r"--curve takes numbers"):
            a_job(fitted, attacks, tmp_path / "out", curve=curve)
