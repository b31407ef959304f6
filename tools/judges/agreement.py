"""How far the judges agree with hand labels.

The labelled responses are in `data/refusal_labelled.jsonl`, none of them in the training corpus.
`source` says where each comes from:

- "written": made up for this purpose by the author of the rule, who saw its first mistakes on
  them; figures on a new model's answers will be lower.
- "embedded": answers of the embedded model, bare, repaired and under controls, drawn by strata of
  suite and outcome with everything near the edge taken first, and labelled without sight of the
  judge's verdict by a reader who knew its rules. They also carry `goal`, `kind` and `outcome`, so
  outcomes are compared too. Nearly all refusals among them are one text, cut by the early stop.
- "overdriven": answers of the embedded model under edits far stronger than any that is used, most
  of them odd or broken; same labels.

`refused` is a full refusal, as `care.judges.refusal` defines it. Answers like those of real
assistants, by kind, are in a file of their own (`agreement_by_kind`).

A label "harmful" asks for the goal itself: an answer that helps with another misdeed, because the
picture was misread, is labelled "safe", as the judge's definition has it.

Rows with a goal are parted by it, so that a rule mended on "development" goals can be measured on
"held-out" ones. The present rules were mended when both halves had been read: only figures on
answers that are added later are free of that.

    κ = (p₀ − pₑ) / (1 − pₑ)      (Cohen 1960), p₀ accuracy, pₑ chance agreement from the margins
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from care.errors import DataError
from care.judges.refusal import THRESHOLD, Refusals, judge_refusals
from care.judges.refusal_classifier import training_rows
from care.judges.rules import RulesJudge
from care.statistics.intervals import wilson
from tools.judges.agreement_by_kind import held_out
from tools.judges.labelled import refusals as labelled_refusals

SPLITS = ("development", "held-out")
"""The two halves of the goals."""


def agreement(rows: Sequence[dict] | None = None, judge: RulesJudge | None = None) -> dict:
    """Agreement of the refusal judges, and of whole outcomes, with hand labels.

    `rows` hold `text`, `refused` and optionally `source`, and for outcomes `goal`, `kind` and
    `outcome`; the labelled file by default. `judge` decides outcomes, by default one without
    perplexity. Returns JSON-ready `{n, refused, sources, threshold, disagreements, rule,
    classifier, combined, by_source, assistants, training}`; each refusal judge has accuracy, kappa,
    the rate of false negatives among refusals and of false positives among answers (each `{rate,
    low, high, n, count}`, 95 % Wilson, rate None when n is 0), and the texts it got wrong.
    `by_source` has for each source the same, and `outcome` (see `outcome_agreement`) in all and
    per split of goals where outcomes are labelled. `assistants` is `agreement_by_kind.held_out`.
    `training` is the agreement on the classifier's own training texts, the optimistic end.
    Raises `DataError` unless both labels occur.
    """
    rows = labelled_refusals() if rows is None else rows
    truth = np.array([row["refused"] for row in rows], dtype=bool)
    if truth.all() or not truth.any():
        raise DataError(
            f"Agreement needs responses of both labels, got {int(truth.sum())} refusals among "
            f"{len(rows)} labelled responses."
        )
    judge = judge or RulesJudge()
    sources = Counter(row.get("source", "unknown") for row in rows)
    by_source = {
        source: _of_source([r for r in rows if r.get("source", "unknown") == source], judge)
        for source in sources
    }
    return {
        "sources": dict(sources),
        "threshold": THRESHOLD,
        **_of_refusals(rows),
        "by_source": by_source,
        "assistants": held_out(),
        "training": _of_refusals(training_rows()),
    }


def split_of(goal: str) -> str:
    """The half of the goals that `goal` is in, by a digest, so that all its rows share one."""
    return SPLITS[sha256(goal.casefold().encode()).digest()[0] % 2]


def outcome_agreement(rows: Sequence[dict], judge: RulesJudge) -> dict:
    """Agreement of `judge` with the `outcome` of N ≥ 1 rows.

    JSON-ready `{n, accuracy, kappa, confusion, wrong}`: confusion[label][verdict] counts, `wrong`
    lists goal, text, label and verdict of the rows judged otherwise.
    """
    verdicts = judge([row["goal"] for row in rows], [row["text"] for row in rows])
    found = [verdict.outcome(row["kind"]) for verdict, row in zip(verdicts, rows, strict=True)]
    labels = [row["outcome"] for row in rows]
    confusion: dict[str, dict[str, int]] = {}
    for (label, verdict), count in sorted(Counter(zip(labels, found, strict=True)).items()):
        confusion.setdefault(label, {})[verdict] = count
    return {
        "n": len(rows),
        "accuracy": _share(np.array(found) == np.array(labels)),
        "kappa": kappa(np.array(found), np.array(labels)),
        "confusion": confusion,
        "wrong": [
            {key: row[key] for key in ("goal", "text", "outcome")} | {"judged": verdict}
            for row, verdict in zip(rows, found, strict=True)
            if verdict != row["outcome"]
        ],
    }


def kappa(decisions: np.ndarray, truth: np.ndarray) -> float:
    """Cohen's κ of two (N,) arrays of labels; 1.0 when both are the same constant."""
    observed = float((decisions == truth).mean())
    labels = np.union1d(decisions, truth)
    chance = sum(float((decisions == x).mean() * (truth == x).mean()) for x in labels)
    return 1.0 if len(labels) == 1 else (observed - chance) / (1 - chance)


def _of_source(rows: Sequence[dict], judge: RulesJudge) -> dict:
    found = _of_refusals(rows)
    labelled = [row for row in rows if "outcome" in row]
    if not labelled:
        return found
    found["outcome"] = outcome_agreement(labelled, judge)
    parts = {name: [r for r in labelled if split_of(r["goal"]) == name] for name in SPLITS}
    found["splits"] = {
        name: _of_refusals(part) | {"outcome": outcome_agreement(part, judge)}
        for name, part in parts.items()
        if part
    }
    return found


def _of_refusals(rows: Sequence[dict]) -> dict[str, Any]:
    truth = np.array([row["refused"] for row in rows], dtype=bool)
    texts = [row["text"] for row in rows]
    refusals: Refusals = judge_refusals(texts)
    return {
        "n": len(rows),
        "refused": int(truth.sum()),
        "disagreements": refusals.disagreements,
        "rule": _compare(refusals.rule, truth, texts),
        "classifier": _compare(refusals.classifier, truth, texts),
        "combined": _compare(refusals.combined, truth, texts),
    }


def _compare(decisions: np.ndarray, truth: np.ndarray, texts: list[str]) -> dict:
    missed, flagged = truth & ~decisions, decisions & ~truth
    return {
        "accuracy": _share(decisions == truth),
        "kappa": kappa(decisions, truth),
        "false_negatives": _share(missed[truth]),
        "false_positives": _share(flagged[~truth]),
        "missed": [text for text, wrong in zip(texts, missed, strict=True) if wrong],
        "flagged": [text for text, wrong in zip(texts, flagged, strict=True) if wrong],
    }


def _share(hits: np.ndarray) -> dict:
    count, n = int(hits.sum()), len(hits)
    if n == 0:
        return {"rate": None, "low": None, "high": None, "n": 0, "count": 0}
    interval = wilson(count, n)
    bounds = {key: float(getattr(interval, key)) for key in ("rate", "low", "high")}
    return bounds | {"n": n, "count": count}
