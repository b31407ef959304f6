"""Commands of two words, those that fetch, and the names that commands had."""

import json

import pytest

from care.attacks.variant_attacks import VARIANT_ATTACKS, kind_of
from care.interfaces.cli import app as cli
from care.interfaces.cli.registry import commands

VERBS = sorted({entry.words[0] for entry in commands() if len(entry.words) == 2})


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_lists_what_it_acts_on(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    listed = capsys.readouterr().out
    assert cli.main([verb]) == 2
    shown = capsys.readouterr()
    for entry in commands():
        if entry.words[0] == verb:
            assert entry.words[1] in listed and entry.words[1] in shown.out + shown.err


@pytest.mark.parametrize("entry", commands(), ids=lambda entry: " ".join(entry.words))
def test_every_command_explains_itself(entry, capsys):
    assert cli.main([*entry.words, "-h"]) == 0
    shown = capsys.readouterr().out
    assert f"care {' '.join(entry.words)}" in shown and "--help" in shown


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["rejudge", "runs/x"], "`care rejudge` is now `care judge RUN`."),
        (["inspect-log", "runs/x"], "`care export RUN --format inspect`"),
        (["suites"], "`care list suites`"),
        (["suites", "check", "a", "b"], "`care check suites FIT TEST…`"),
        (["judges", "--help"], "`care list judges`"),
        (["embedded", "assemble"], "`care download model embedded`"),
        (["embedded", "train"], "`make embedded-model`"),
        (["attack", "--repair", "r", "--compare"], "--adaptive PRESET"),
        (["repir"], "No such command 'repir'. Did you mean 'repair', 'report'? See `care --help`."),
        (["list", "suits"], "Did you mean 'suites'? See `care list --help`."),
        (
            ["repair", "--sed", "1"],
            "No such option: --sed (Possible options: --preset, --seed, --shard);",
        ),
        (["repair", "--seed", "x"], "see `care repair --help`."),
        (["report"], "see `care report --help`."),
        (["download", "model", "llava"], "embedded"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_wrong_or_earlier_name_is_one_sentence(given, told, capsys):
    assert cli.main(given) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("Error: ") and shown.err.count("\n") == 1 and told in shown.err


def test_the_embedded_model_is_fetched_or_only_found(monkeypatch, tmp_path, capsys):
    from care.models.embedded import cache

    monkeypatch.setenv("CARE_CACHE", str(tmp_path))
    assert cli.main(["download", "model", "embedded", "--where"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip().startswith(str(tmp_path))
    assert "care download model embedded" in shown.err
    monkeypatch.setattr(cache, "ensure_base", lambda: tmp_path / "base")
    assert cli.main(["download", "model", "embedded"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "base")


def test_a_suite_is_fetched(capsys):
    assert cli.main(["download", "suite", "direct"]) == 0
    assert capsys.readouterr().out.startswith("direct: 60 examples")


def test_defenses_are_listed_beside_the_bare_model(capsys):
    assert cli.main(["list", "defenses"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [row[0] for row in rows]
    assert names[:2] == ["defense", "none"] and {"neurons", "repair"} <= set(names)
    assert (files := {row[0]: row[-1] for row in rows})["neurons"] == "neurons.json"
    assert files["repair"] == "repair.json"


def test_presets_of_attacks_are_listed(capsys):
    assert cli.main(["list", "attacks"]) == 0
    shown = capsys.readouterr().out
    assert "astra-apgd-32" in shown and "32/255" in shown
    assert cli.main(["list", "attacks", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["pgd-32"]["steps"] == 40 and found["templates"]["tries"] >= 50
    for name, kind in ((name, kind_of(name)) for name in VARIANT_ATTACKS):
        assert kind.name == name
        assert name in shown and found[name]["about"] and found[name]["source"] == kind.source
        searched = name in ("gcg", "registers", "missed", "said", "pictured", "joined")
        assert (found[name]["changes"], found[name]["searched"]) == (kind.stage, searched)
