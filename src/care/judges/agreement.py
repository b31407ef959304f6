"""How far the refusal judges agree with hand labels.

The labelled responses are in `data/refusal_labelled.jsonl`, none of them in the training corpus;
`source` says where each comes from ("written" ones were made up for this purpose by the author
of the rule, who saw its first mistakes on them; figures on a new model's answers will be lower).

    κ = (p₀ − pₑ) / (1 − pₑ)      (Cohen 1960), p₀ accuracy, pₑ chance agreement from the margins
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from care.errors import DataError
from care.judges.refusal import THRESHOLD, judge_refusals, load_rows
from care.statistics import wilson


def agreement(rows: Sequence[dict] | None = None) -> dict:
    """Agreement of rule, classifier and their combination with hand labels.

    `rows` hold `text`, `refused` and optionally `source`; the labelled file by default. Returns
    JSON-ready `{n, refused, sources, threshold, disagreements, rule, classifier, combined}`; each
    judge has accuracy, kappa, the rate of false negatives among refusals and of false positives
    among answers (each `{rate, low, high, n, count}`, 95 % Wilson), and the texts it got wrong.
    Raises `DataError` unless both labels occur.
    """
    rows = load_rows("refusal_labelled.jsonl") if rows is None else rows
    truth = np.array([row["refused"] for row in rows], dtype=bool)
    if truth.all() or not truth.any():
        raise DataError(
            f"Agreement needs responses of both labels, got {int(truth.sum())} refusals among "
            f"{len(rows)} labelled responses."
        )
    texts = [row["text"] for row in rows]
    refusals = judge_refusals(texts)
    return {
        "n": len(rows),
        "refused": int(truth.sum()),
        "sources": dict(Counter(row.get("source", "unknown") for row in rows)),
        "threshold": THRESHOLD,
        "disagreements": refusals.disagreements,
        "rule": _compare(refusals.rule, truth, texts),
        "classifier": _compare(refusals.classifier, truth, texts),
        "combined": _compare(refusals.combined, truth, texts),
    }


def kappa(decisions: np.ndarray, truth: np.ndarray) -> float:
    """Cohen's κ of two (N,) bool arrays; 1.0 when both are the same constant."""
    observed = float((decisions == truth).mean())
    p, q = float(decisions.mean()), float(truth.mean())
    chance = p * q + (1 - p) * (1 - q)
    return 1.0 if chance == 1.0 else (observed - chance) / (1 - chance)


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
    interval = wilson(count, n)
    bounds = {key: float(getattr(interval, key)) for key in ("rate", "low", "high")}
    return bounds | {"n": n, "count": count}
