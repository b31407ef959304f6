"""Progress: lines in a log, and a pace that leaves out what was there before."""

import io
import re

import pytest

from care.runs import progress as progress_module
from care.runs.progress import Progress, duration


def test_progress_in_a_log(capsys):
    with Progress("answers", 10, done=4, every=0.0) as progress:
        progress.advance(3, note="vqa")
        progress.advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("answers 7/10 (70%)") and lines[0].endswith("vqa")
    assert re.search(r"/s, .* left", lines[0])
    assert lines[-1].startswith("answers 10/10 (100%)") and len(lines) == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_stand_between_those_of_the_bar(terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    with Progress("answers", 2, stream=stream) as progress:
        progress.say("[picture] once")
        progress.advance(2)
    text = stream.getvalue()
    assert text.count("[picture] once\n") == 1 and text.index("once") < text.rindex("answers")


def test_progress_rate_leaves_out_what_was_there(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    progress = Progress("answers", 100, done=50)
    assert progress.pace() == ""
    clock[0] = 10.0
    progress.done += 20
    assert progress.rate() == 2.0
    assert progress.pace() == "2.0/s, 15 s left"


def test_durations():
    assert [duration(s) for s in (7.6, 125, 3780)] == ["8 s", "2 min 05 s", "1 h 03 min"]
    assert [duration(s, 1) for s in (7.64, 59.97, 125)] == ["7.6 s", "1 min 00 s", "2 min 05 s"]
