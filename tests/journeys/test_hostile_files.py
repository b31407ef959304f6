"""Files that aren't what was asked for, to every option and argument of the command line that
names one: exit code 2, one sentence, no hang, and nothing written that blocks a later right call.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from care.interfaces.cli import app as cli
from care.models.spec import ModelSpec

GIB = 1 << 30
DEEP = "[" * 100_000
DEEPER_THAN_IS_READ = '{"prompt": ' + "[" * 500 + "]" * 500 + "}"

LINE = {"id": "a", "prompt": "Wash a car", "kind": "malicious"}
PLACES: dict[str, list[str]] = {
    "evaluate --suite": ["evaluate", "m", "--suite", "FILE", "--out", "OUT"],
    "evaluate --utility": ["evaluate", "m", "--utility", "FILE", "--out", "OUT"],
    "evaluate --fitted-on": [
        *["evaluate", "m", "--suite", "fine.jsonl", "--fitted-on", "FILE", "--out", "OUT"]
    ],
    "evaluate --labels": [
        *["evaluate", "m", "--suite", "fine.jsonl", "--labels", "FILE", "--out", "OUT"]
    ],
    "evaluate --repair": [
        *["evaluate", "m", "--suite", "fine.jsonl", "--repair", "FOLDER", "--out", "OUT"]
    ],
    "evaluate --judge": [
        *["evaluate", "m", "--suite", "fine.jsonl", "--out", "OUT"],
        *["--judge", "api,model=m,template=FILE"],
    ],
    "evaluate --adaptive": [
        *["evaluate", "m", "--suite", "fine.jsonl", "--out", "OUT"],
        *["--adaptive", "pgd-32,steps=1,requests=FILE"],
    ],
    "repair --attacks": [
        "repair",
        "m",
        "--attacks",
        "FILE",
        "--benign",
        "ok.jsonl",
        "--out",
        "OUT",
    ],
    "repair --benign": ["repair", "m", "--attacks", "ok.jsonl", "--benign", "FILE", "--out", "OUT"],
    "fit --attacks": ["fit", "m", "--attacks", "FILE", "--benign", "ok.jsonl", "--out", "OUT"],
    "diagnose --benign": [
        *["diagnose", "m", "--attacks", "ok.jsonl", "--benign", "FILE", "--out", "OUT"]
    ],
    "attack --requests": ["attack", "m", "--requests", "FILE", "--out", "OUT"],
    "attack --corpus": ["attack", "m", "--corpus", "FILE", "--out", "OUT"],
    "attack --start": ["attack", "m", "--start", "FILE", "--out", "OUT"],
    "attack --repair": ["attack", "m", "--repair", "FOLDER", "--out", "OUT"],
    "show suite": ["show", "suite", "FILE", "--out", "OUT/x.jsonl"],
    "show suite --path": ["show", "suite", "advbench", "--path", "FILE"],
    "suites check": ["check", "suites", "FILE", "fine.jsonl"],
    "suites check, tested": ["check", "suites", "fine.jsonl", "FILE"],
    "judges check": ["check", "judge", "FILE"],
    "report": ["report", "FILE"],
    "report of a folder": ["report", "RUN"],
    "judge": ["judge", "RUN", "--judge", "rules"],
    "rejudge, a file": ["judge", "FILE", "--judge", "rules"],
    "rejudge --labels": ["judge", "run", "--judge", "rules", "--labels", "FILE"],
    "export": ["export", "RUN", "--format", "inspect", "--out", "OUT"],
}
INSIDE = {"FOLDER": "repair.json", "RUN": "manifest.json"}
"""The file within a folder that is spoilt, by the folder's place."""

SPOILT = (
    *("a named pipe", "a device", "a folder", "nothing", "a socket", "a huge file"),
    *("deep JSON", "deeply nested JSON", "no UTF-8", "UTF-16", "an empty file"),
)


def spoil(path: Path, how: str) -> None:
    """Put something there that can't be used."""
    contents = {
        "deep JSON": DEEP.encode(),
        "deeply nested JSON": DEEPER_THAN_IS_READ.encode(),
        "no UTF-8": b'{"prompt": "\xff\xfe"}\n',
        "UTF-16": json.dumps(LINE).encode("utf-16"),
        "an empty file": b"",
    }
    if how in contents:
        path.write_bytes(contents[how])
    elif how == "a named pipe":
        os.mkfifo(path)
    elif how == "a device":
        path.symlink_to("/dev/zero")
    elif how == "a folder":
        path.mkdir()
    elif how == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)  # in the present folder, since its path may be too long
            Path(path.name).replace(path)
    elif how == "a huge file":
        with path.open("wb") as file:
            file.truncate(8 * GIB)  # sparse


@pytest.fixture
def bounded() -> Iterator[None]:
    """A hang or a full memory is a failure and doesn't take the machine along."""

    def too_long(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, too_long)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIB, limits[1]))
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with right files, where no command may load a model."""

    def loads(self: ModelSpec) -> Any:
        raise AssertionError("the model is loaded before the files are looked at")

    monkeypatch.setattr(ModelSpec, "load", loads)
    monkeypatch.setattr("care.interfaces.inspect.logs.require_inspect", lambda: None)
    monkeypatch.chdir(tmp_path)
    Path("fine.jsonl").write_text(json.dumps(LINE) + "\n")
    rows = [{"prompt": f"Paint {n} doors", "goal": f"paint {n}"} for n in range(20)]
    Path("ok.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("place", PLACES)
def test_what_cant_be_read_is_one_sentence(
    place: str, how: str, here: Path, bounded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = PLACES[place]
    name = "bad.png" if "--start" in arguments else "bad.jsonl"
    name = "bad.csv" if "--path" in arguments else name
    spoil(here / name, how)
    for folder, inside in INSIDE.items():
        (here / folder).mkdir()
        if folder in arguments:
            inside = "report.json" if "report" in arguments else inside
            if how != "nothing":
                (here / name).rename(here / folder / inside)
    before = {path: path.lstat().st_mtime_ns for path in here.rglob("*") if not path.is_dir()}
    given = [argument.replace("FILE", str(here / name)) for argument in arguments]
    code = cli.main(given)
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert "Traceback" not in shown
    if not shown.lstrip().startswith("Usage"):  # what typer itself checks is in a box
        assert shown.startswith("Error: ") and shown.count("\n") == 1, shown
    # Nothing is there that would stand in the way of the right call.
    after = {path: path.lstat().st_mtime_ns for path in here.rglob("*") if not path.is_dir()}
    assert {path for path in after if path not in before and path.name != ".lock"} == set()
    assert all(after[path] == before[path] for path in before)
