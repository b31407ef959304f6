"""The commands on what comes with care: suites, assembling the embedded model."""

import re

import pytest

from care.interfaces.cli import app as cli

COMMANDS = {
    "suites": ("list", "show", "check"),
    "embedded": ("assemble", "base"),
}


@pytest.mark.parametrize("group", COMMANDS)
def test_a_group_lists_its_commands_and_each_explains_itself(group, capsys):
    assert cli.main([group, "--help"]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS[group]:
        assert re.search(rf"\b{name}\b", listed)
        assert cli.main([group, name, "-h"]) == 0
        shown = capsys.readouterr().out
        assert f"care {group} {name}" in shown and "--help" in shown


def test_embedded_alone_shows_its_help(capsys):
    assert cli.main(["embedded"]) == 2
    shown = capsys.readouterr()
    assert "assemble" in shown.out + shown.err


def test_an_unknown_command_exits_with_2(capsys):
    assert cli.main(["embedded", "nothing"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_folder_of_the_base_model(monkeypatch, tmp_path, capsys):
    from care.models.embedded import cache

    monkeypatch.setenv("CARE_CACHE", str(tmp_path))
    assert cli.main(["embedded", "base"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip().startswith(str(tmp_path))
    assert "assemble" in shown.err
    monkeypatch.setattr(cache, "ensure_base", lambda: tmp_path / "base")
    assert cli.main(["embedded", "assemble"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "base")
