"""Folders of runs whose files are valid JSON of another shape, cut, or empty: one sentence each.

Every JSON file of a small run is changed in every place, and everything that reads such a folder is
asked: it must give the right result or one sentence and exit code 2, and never a traceback.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from care.errors import CareError, DataError
from care.evaluation import tabulation
from care.evaluation.rows import AnswerRow, JudgedRow, VerdictRow, check_rows
from care.evaluation.scores import Scorecard
from care.interfaces.cli import app as cli
from care.runs.files import to_json
from care.typed import from_tree, to_tree
from kit.evaluate_command import ARGUMENTS, world  # noqa: F401

RESUME = [*ARGUMENTS, "--repair", "care", "--judge", "rules", "--limit", "2", "--resume"]
REJUDGE = ["judge", "run", "--judge", "rules,as=again"]
COMMANDS = {
    "manifest.json": [REJUDGE],
    "rows.jsonl": [RESUME, REJUDGE],
    "answers.jsonl": [RESUME],
    "verdicts.jsonl": [REJUDGE],
}

OTHERS: tuple[Any, ...] = (None, True, 3, 0.5, "x", [], [1], {}, {"a": 1})


UNREAD = ("machine", "versions", "command", "created", "by_judge", "agreement", "power", "suites")
"""Parts that are changed as a whole only."""


def changed(value: Any, others: Iterator[Any]) -> Iterator[Any]:
    """The value with one thing in it, at any depth, left out or of another type."""
    yield next(each for each in others if type(each) is not type(value))
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            inner = value[key] if key not in UNREAD else None
            yield from ({**value, key: each} for each in changed(inner, others))
    elif isinstance(value, list) and value:
        yield from ([each, *value[1:]] for each in changed(value[0], others))


def broken(text: str, lines: bool) -> Iterator[str]:
    """The text of a JSON file, or of one of JSON lines, damaged in every way."""
    yield from ("", text[: len(text) // 2], "[]\n", "null\n", "3\n", "\x00" * 9, text[:-3])
    if lines:
        first, _, rest = text.partition("\n")
        for each in changed(json.loads(first), itertools.cycle(OTHERS)):
            yield json.dumps(each) + "\n" + rest
    else:
        yield from map(json.dumps, changed(json.loads(text), itertools.cycle(OTHERS)))


@pytest.fixture
def finished(world) -> Path:
    short = Path("attack.jsonl").read_text().splitlines(keepends=True)[:2]
    Path("attack.jsonl").write_text("".join(short))
    assert cli.main([*ARGUMENTS, "--repair", "care", "--judge", "rules", "--limit", "2"]) == 0
    assert cli.main(["judge", "run", "--judge", "rules,as=again"]) == 0
    return Path("run")


@pytest.mark.parametrize("name", ["manifest.json", "rows.jsonl", "answers.jsonl", "verdicts.jsonl"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_no_file_of_an_evaluation_makes_a_traceback(finished, name, capsys, monkeypatch):
    from care.interfaces.inspect import logs as inspect_logs

    monkeypatch.setattr(inspect_logs, "require_inspect", lambda: None)
    monkeypatch.setattr(inspect_logs, "_log", lambda run, suite, defense: str(run.manifest))
    if name in ("manifest.json", "answers.jsonl"):  # of which a scorecard reads nothing
        card = from_tree(Scorecard, json.loads((finished / "table.json").read_text()))
        monkeypatch.setattr(tabulation, "scorecard", lambda *_, **__: card)
    whole = Path(shutil.copytree(finished, "whole"))
    text = (whole / name).read_text()
    refused = tried = 0
    step = 3 if name == "manifest.json" else 1  # it has many places of one kind
    for damaged in itertools.islice(broken(text, name.endswith("jsonl")), 0, None, step):
        for command in COMMANDS[name]:
            shutil.rmtree("run")
            shutil.copytree(whole, "run")
            Path("run", name).write_text(damaged)
            capsys.readouterr()
            code = cli.main(command)
            told = capsys.readouterr().err.strip()
            tried += 1
            refused += code == 2
            assert code in (0, 2), (command, damaged[:200])
            if code == 2:
                assert told.count("Error: ") == 1 and told.splitlines()[-1][:7] == "Error: ", told
        try:
            inspect_logs._read(Path("run"), images=False)
        except CareError as error:
            assert "\n" not in str(error)
    assert tried > 12 and refused > 5


ROW = {
    "key": "s/e/none/0", "digest": "d", "suite": "s", "role": "attack", "example": "e",
    "kind": "malicious", "category": "", "defense": "none", "seed": 0, "prompt": "p", "goal": "g",
    "response": "r", "error": None, "outcome": "safe", "correct": None,
}  # fmt: skip
VERDICT = {
    "key": "s/e/none/0/j/1", "row": "s/e/none/0", "judge": "j", "attempt": 1, "outcome": None,
    "flagged": True, "error": None,
}  # fmt: skip
ANSWER = {"key": "s/e/none/0", "response": "r", "error": None}


def test_rows_are_stored_as_their_types_have_them(finished):
    for name, kind in (("answers", AnswerRow), ("rows", JudgedRow), ("verdicts", VerdictRow)):
        for line in (finished / f"{name}.jsonl").read_text().splitlines():
            assert to_json(to_tree(from_tree(kind, json.loads(line)))) == line


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (AnswerRow, ANSWER),
        (AnswerRow, ANSWER | {"response": None, "error": "no picture"}),
        (JudgedRow, ROW),
        (JudgedRow, {key: ROW[key] for key in ROW if key != "digest"}),
        (JudgedRow, ROW | {"outcome": None, "error": "not judged"}),
        (VerdictRow, VERDICT),
        (VerdictRow, VERDICT | {"flagged": None, "error": "no reply", "score": 1}),
    ],
)
def test_what_has_its_type_passes_and_what_is_not_named_is_left_alone(kind, row):
    check_rows(kind, [row, row | {"more": [1]}], "F")


@pytest.mark.parametrize(
    ("kind", "row", "told"),
    [
        (AnswerRow, ANSWER | {"response": None}, "`response` is null, and so is `error`"),
        (JudgedRow, ROW | {"response": None}, "`response` is null, and so is `error`"),
        (JudgedRow, ROW | {"outcome": None}, "`outcome` is null, and so is `error`"),
        (
            JudgedRow,
            ROW | {"outcome": "bad"},
            "`outcome` is 'bad'; use one of 'harmful'",
        ),
        (JudgedRow, ROW | {"kind": ["benign"]}, r"`kind` is \['benign'\]; use one of 'malicious'"),
        (JudgedRow, ROW | {"seed": True}, "`seed` is True; it must be an integer"),
        (JudgedRow, ROW | {"correct": 1}, "`correct` is 1; it must be true or false"),
        (JudgedRow, {key: ROW[key] for key in ROW if key != "suite"}, "`suite` is missing"),
        (VerdictRow, VERDICT | {"flagged": None}, "`flagged` is null, and so is `error`"),
        (VerdictRow, VERDICT | {"attempt": 0}, "`attempt` is 0; it must be at least 1"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_place(kind, row, told):
    told = f"^The row '{row['key']}' in F can't be used: {told}.*; restore the file, or choose an"
    with pytest.raises(DataError, match=told):
        check_rows(kind, [row], "F")
