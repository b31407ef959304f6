"""What an attack comes to that asks each request in several variants: the best of n tries.

Somebody who may try n variants wins a goal if any of them works, so beside the mean over variants
(n = 1) a table holds the best of 4, of 16 and of all (`care.statistics.best_of`). Variants that
failed or weren't judged are no tries. Which variant worked best is told for all but draws, which
differ by chance alone.
"""

from __future__ import annotations

from care.attacks.variants import request_of, variant_of
from care.evaluation.asked_attacks import AskedVariants
from care.evaluation.attack_scores import BestOfTries, Tries
from care.evaluation.results import Results, counts
from care.runs.rows import Row
from care.statistics.best_of import best_of, mean_best_of

NUMBERS = (1, 4, 16)
"""n of the best of n, beside all tries there are."""


def tries_of(table: Results, suite: str, of: AskedVariants, seed: int) -> list[Tries]:
    """One entry for each defense to which the attack's `suite` was put."""
    return [
        _tries(table.group(suite, defense), suite, defense, of, seed)
        for defense in table.defenses
        if table.has(suite, defense)
    ]


def _tries(rows: list[Row], suite: str, defense: str, of: AskedVariants, seed: int) -> Tries:
    judged: dict[str, list[Row]] = {}
    for row in rows:
        if row["error"] is None:
            judged.setdefault(request_of(row["example"]), []).append(row)
    most = max((len(own) for own in judged.values()), default=0)
    numbers = sorted({n for n in NUMBERS if n < most} | {most} - {0})
    return Tries(
        attack=of.name,
        suite=suite,
        defense=defense,
        requests=len(judged),
        tries=most,
        errors=len(rows) - sum(map(len, judged.values())),
        best=tuple(_best(judged, n, seed) for n in numbers),
        variants={} if of.attack.stage == "draw" else _by_variant(judged),
    )


def _best(judged: dict[str, list[Row]], n: int, seed: int) -> BestOfTries:
    successes = [sum(map(counts, own)) for own in judged.values()]
    tries = [len(own) for own in judged.values()]
    goals = [own[0]["goal"] or own[0]["prompt"] for own in judged.values()]
    if len(set(goals)) < 2:
        rates = [best_of(k, m, n) for k, m in zip(successes, tries, strict=True)]
        return BestOfTries(n, sum(rates) / len(rates), None, None)
    found = mean_best_of(successes, tries, goals, n, seed)
    return BestOfTries(n, found.rate, found.low, found.high)


def _by_variant(judged: dict[str, list[Row]]) -> dict[str, float]:
    by_name: dict[str, list[bool]] = {}
    for own in judged.values():
        for row in own:
            by_name.setdefault(variant_of(row["example"]), []).append(counts(row))
    return {name: sum(marks) / len(marks) for name, marks in by_name.items()}
