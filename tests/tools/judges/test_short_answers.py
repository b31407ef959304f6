"""Short answers are read as they were labelled by hand."""

import json

from tools.judges.__main__ import main
from tools.judges.labelled import short_answers
from tools.judges.short_answers import agreement

KINDS = ["yes or no", "choice", "number", "reference"]


def test_every_labelled_answer_is_read_as_labelled():
    found = agreement()
    assert {kind: entry["wrong"] for kind, entry in found.items() if entry["wrong"]} == {}
    assert [kind for kind, entry in found.items() if entry["n"] >= 90] == KINDS
    assert all(entry["nothing"] >= 25 for entry in found.values())
    rows = short_answers()
    assert len({json.dumps(row) for row in rows}) == len(rows)


def test_an_answer_that_is_read_otherwise_is_shown():
    row = {"kind": "number", "answer": "There are three.", "stated": "4"}
    other = {"kind": "yes or no", "answer": "<think>so", "stated": None}
    assert agreement([row, other]) == {
        "number": {"n": 1, "nothing": 0, "agree": 0, "wrong": [row]},
        "yes or no": {"n": 1, "nothing": 1, "agree": 1, "wrong": []},
    }


def test_the_command_prints_agreement_by_kind(capsys):
    assert main(["short-answers"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == KINDS
