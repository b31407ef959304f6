"""How far the readers of short answers agree with labels by hand, by kind of answer.

The labelled answers (`data/short_answers.jsonl`: `kind`, `answer`, and what is `stated`, null for
nothing, or for references whether the answer is `right`) were written for this purpose, before the
readers: yes or no, letters of options, numbers and other references, in many wordings, those that
state nothing among them. They are no sample of any model's answers, so a share here isn't an
accuracy there.
"""

from __future__ import annotations

from typing import Any

from care.judges.answer_matching import correct
from care.judges.numbers import stated_number
from care.judges.stated import stated_option, stated_yes_no
from care.models.thoughts import answer_of
from tools.judges.labelled import short_answers

CHOICES = "ABCD"
"""Letters of the options of the labelled choices."""


def agrees(row: dict[str, Any]) -> bool:
    """Whether a labelled answer is read as its label says."""
    if row["kind"] == "reference":
        return correct(row["references"], row["answer"]) == row["right"]
    answer, stated = answer_of(row["answer"]), row["stated"]
    if answer is None:
        return stated is None
    if row["kind"] == "yes or no":
        return stated_yes_no(answer) == stated
    if row["kind"] == "choice":
        return stated_option(answer, CHOICES) == stated
    return stated_number(answer) == (None if stated is None else float(stated))


def agreement(rows: list[dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """By kind: how many answers there are, how many state nothing, how many are read as labelled,
    and which aren't."""
    found: dict[str, dict[str, Any]] = {}
    for row in short_answers() if rows is None else rows:
        entry = found.setdefault(row["kind"], {"n": 0, "nothing": 0, "agree": 0, "wrong": []})
        entry["n"] += 1
        entry["nothing"] += not row.get("right", row.get("stated"))
        if agrees(row):
            entry["agree"] += 1
        else:
            entry["wrong"].append(row)
    return found
