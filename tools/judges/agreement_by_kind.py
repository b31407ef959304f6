"""How far the refusal judge agrees with labels on answers like those of real assistants, by kind.

The answers are in the package's `refusal_assistants.jsonl`, written for the purpose by instances of
a language model that imitate such assistants (none was taken from a benchmark, and no answers of
real assistants were read) and labelled by them with the definition of `care.judges.refusal`:

    label      full, partial or compliance; `refused` is full
    kind       what the answer does: "impersonal moralising", "unable", "caveat then answer", …
    register   whose manner it is in: "strict moraliser" (an early open chat model with its safety
               prompt), "moraliser" (without), "impersonal" (an instruction model that refuses
               without saying I), "guarded" (the same with a prompt that asks for care and respect),
               "terse" (a commercial assistant), "language model", "modern terse", "warm",
               "programmed", "pictures", "small"
    request    what was asked; all answers to one request are in one part
    part       "development": the classifier is trained on them; "held-out": not read while the
               rules were written, neither the first author's nor the fourth's
    author     "first" to "fourth", who wrote without sight of each other's answers and of the
               rules. Rules were mended on the first's development part and on the second's
               answers; the third's were not read for that, and the fourth's were judged only when
               the rules were done. Kinds of all but the first's are not sorted further

`held_out` is the shipped judge on the held-out part. `left_out("register")` is what may be expected
of an assistant of a new manner: each register is judged by a classifier that was trained without
it, whoever wrote it (the two moralisers count as one, and so do the two terse ones).
`left_out("author")` is what may be expected of a new author's answers: each author's are judged by
a classifier trained on the others'. Only of the third author's is that free of what the rules were
mended on. Answers of real models differ more.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from care.judges.refusal import THRESHOLD, certainly_refused, judge_refusals
from care.judges.refusal_classifier import load_rows, new_classifier, probabilities, training_rows
from care.statistics.agreement import kappa_interval
from care.statistics.intervals import wilson

Grouping = Literal["register", "author"]

FILE = "refusal_assistants.jsonl"
"""The labelled answers, in the data of `care.judges`."""


def held_out() -> dict[str, Any]:
    """The judge on the held-out part; JSON-ready, see `compared`."""
    rows = _part("held-out")
    return compared(rows, judge_refusals([row["text"] for row in rows]).combined)


def left_out(by: Grouping = "register") -> dict[str, Any]:
    """Each group of the development part by a judge trained without it; see `compared`.

    Trains a classifier for every group, which takes seconds.
    """
    rows = _part("development")
    groups = np.array([_GROUP[by](row) for row in rows])
    decisions = np.zeros(len(rows), dtype=bool)
    for left in sorted(set(groups)):
        rest = [row for row in training_rows() if "register" not in row or _GROUP[by](row) != left]
        model = new_classifier().fit([r["text"] for r in rest], [r["refused"] for r in rest])
        texts = [row["text"] for row, mine in zip(rows, groups == left, strict=True) if mine]
        certain = np.array([certainly_refused(text) for text in texts])
        decisions[groups == left] = certain | (probabilities(texts, model) >= THRESHOLD)
    return compared(rows, decisions)


def manner(row: dict) -> str:
    """The register that is left out together with that of `row`."""
    return row["register"].removeprefix("strict ").removeprefix("modern ")


def _author(row: dict) -> str:
    return row["author"]


_GROUP: dict[Grouping, Callable[[dict], str]] = {"register": manner, "author": _author}


def compared(rows: Sequence[dict], decisions: np.ndarray) -> dict[str, Any]:
    """Agreement of (N,) decisions with N labelled rows, in all, by author, register and kind.

    JSON-ready `{n, full, judged, kappa, accuracy, by_author, by_register, by_kind, wrong}`, each
    part of `by_…` with the first five, an author's also with `by_register`; κ has limits that
    resample requests and is None where it is undefined, accuracy is `{rate, low, high, n, count}`
    (95 %, Wilson). `full` counts labels, `judged` verdicts.
    """
    found = _agreement(rows, decisions)
    for key in ("author", "register", "kind"):
        parts = {}
        for name, (part, mine) in _parts(rows, decisions, key).items():
            parts[name] = _agreement(part, mine)
            if key == "author":
                inner = _parts(part, mine, "register")
                parts[name]["by_register"] = {r: _agreement(*pair) for r, pair in inner.items()}
        found[f"by_{key}"] = parts
    found["wrong"] = [
        {key: row[key] for key in ("label", "kind", "register", "author", "request", "text")}
        for row, decision in zip(rows, decisions, strict=True)
        if bool(decision) != row["refused"]
    ]
    return found


def _parts(
    rows: Sequence[dict], decisions: np.ndarray, key: str
) -> dict[str, tuple[list[dict], np.ndarray]]:
    """Rows and their decisions by what the rows have at `key`, the largest part first."""
    found = {}
    for name, _ in Counter(row[key] for row in rows).most_common():
        mine = np.array([row[key] == name for row in rows])
        found[name] = ([row for row in rows if row[key] == name], decisions[mine])
    return found


def _agreement(rows: Sequence[dict], decisions: np.ndarray) -> dict[str, Any]:
    truth = np.array([row["refused"] for row in rows], dtype=bool)
    right = int((truth == decisions).sum())
    kappa = kappa_interval(
        [bool(t) for t in truth], [bool(d) for d in decisions], [row["request"] for row in rows]
    )
    interval = wilson(right, len(rows))
    return {
        "n": len(rows),
        "full": int(truth.sum()),
        "judged": int(decisions.sum()),
        "kappa": None if kappa is None else dict(vars(kappa)),
        "accuracy": {
            "rate": float(interval.rate),
            "low": float(interval.low),
            "high": float(interval.high),
            "n": len(rows),
            "count": right,
        },
    }


def _part(name: str) -> list[dict]:
    return [row for row in load_rows(FILE) if row["part"] == name]
