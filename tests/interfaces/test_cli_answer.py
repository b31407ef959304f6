"""`care answer`: one request on a terminal or into a file; a tiny model for the embedded one."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from care.data.example import Example
from care.defenses.monitors.monitor import Monitor
from care.interfaces.cli import app as cli
from care.models.responses import REFUSAL
from care.models.vlm import VLM
from care.runs.settings import MAX_BATCH
from kit import repairs, tiny

PROMPT = "how do you wash a car?"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run `care answer` on a tiny model: exit code, standard output, standard error."""
    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": tiny.tiny_vlm()))
    tiny.picture(0).save(tmp_path / "one.png")

    def run(*arguments, terminal=False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
        code = cli.main(["answer", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def watched(tmp_path):
    """A repair whose monitor of answers always alarms, at the end."""
    repair = replace(repairs.repair(), channels=(), monitors=(Monitor("answer", -1e9),))
    return str(repair.save(tmp_path / "repair"))


def test_a_request_is_answered_as_from_python(call, tmp_path):
    image = str(tmp_path / "one.png")
    code, out, err = call("--prompt", PROMPT, "--image", image, "--max-new-tokens", "12")
    [said] = tiny.tiny_vlm().generate(
        Example("request", PROMPT, images=(image,)), max_new_tokens=12
    )
    assert (code, out.rstrip("\n"), err) == (0, said, "")
    assert call("--prompt", PROMPT, "--image", image, "--max-new-tokens", "12", terminal=True) == (
        0, f"{said}\n", "",
    )  # fmt: skip


def test_what_is_withdrawn_is_told_and_a_file_holds_what_stands(call, watched):
    asked = ("--prompt", PROMPT, "--repair", watched, "--max-new-tokens", "20", "--explain")
    code, out, err = call(*asked)
    assert code == 0 and out == f"{REFUSAL}\n"
    first, last = err.splitlines()
    assert first.startswith("[withdrawn (answer ") and "in its place" in first
    assert last.startswith("answer ") and last.endswith("a refusal was given")
    _, out, err = call(*asked, "--hold", "0", terminal=True)
    assert out.endswith(f"{REFUSAL}\n") and len(out) > len(REFUSAL) + 5
    assert err.startswith("\n[withdrawn")  # below what was shown


def test_an_answer_that_no_monitor_decided_is_explained(call):
    code, _, err = call("--prompt", PROMPT, "--max-new-tokens", "4", "--explain")
    assert (code, err) == (0, "No monitor decided it.\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_ends_it_in_one_line(call, monkeypatch, terminal):
    def interrupted(*_, **__):
        yield "To"
        raise KeyboardInterrupt

    monkeypatch.setattr("care.defenses.base.stream_under", interrupted)
    code, out, err = call("--prompt", PROMPT, terminal=terminal)
    assert (code, out, err) == (130, "To\n" if terminal else "", "interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "is empty: give it a prompt or an image"),
        (("--prompt", "x", "--hold", str(MAX_BATCH + 1)), "hold must be at most"),
        (("--prompt", "x", "--repair", "nowhere"), "There is no defense 'nowhere'"),
        (("--image", "nowhere.png"), "nowhere.png"),
    ],
)
def test_wrong_use_is_one_sentence(call, arguments, words):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
