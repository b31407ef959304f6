"""How the parts of a report tree fit together, checked once every part fits the schema.

Outcome counts add up to `n`, rates equal the counts they come from, every control covers the same
suites, a gate has one entry for each family. What the parts of a diagnosis owe each other is said
by their types (`care.diagnosis.results`).
"""

from collections.abc import Mapping
from typing import Any

from care.report.parts import OUTCOMES
from care.report.values import TOLERANCE, check_equal, check_interval, join, problem


def check_parts(tree: Mapping[str, Any]) -> None:
    """Raise `DataError` where two parts of a whole tree contradict each other."""
    check_suites(tree)
    for i, example in enumerate((tree.get("attribution") or {"examples": []})["examples"]):
        path = f"attribution.examples[{i}]"
        rows, cols = example["grid"] or (0, 0)
        check_equal(len(example["visual_scores"]), rows * cols, f"{path}.visual_scores", "grid")
        check_equal(
            len(example["text_scores"]), len(example["tokens"]), f"{path}.text_scores", "tokens"
        )
    known = {suite["name"] for suite in tree["suites"]}
    for i, pair in enumerate(tree.get("examples") or ()):
        if pair["suite"] not in known:
            raise problem(f"examples[{i}].suite", f"is {pair['suite']!r}, which isn't in suites")
    if repair := tree.get("repair"):
        _check_repair(repair)


def check_suites(tree: Mapping[str, Any]) -> None:
    """Raise `DataError` where suites, outcomes and controls contradict each other."""
    if not tree["suites"]:
        raise problem("suites", "is empty; a report needs at least one measured suite")
    seen: set[str] = set()
    for i, suite in enumerate(tree["suites"]):
        path = f"suites[{i}]"
        if suite["name"] in seen:
            raise problem(f"{path}.name", f"repeats {suite['name']!r}; names must be unique")
        seen.add(suite["name"])
        if suite["name"] not in tree["outcomes"]:
            raise problem(join("outcomes", suite["name"]), "is missing, but suites lists it")
        for when in ("before", "after"):
            check_interval(suite[when], f"{path}.{when}")
            _check_counts(suite, when, tree["outcomes"][suite["name"]][when], path)
    if extra := sorted(set(tree["outcomes"]) - seen):
        raise problem(join("outcomes", extra[0]), "isn't the name of a suite in suites")
    _check_controls(tree, seen)


def _check_counts(
    suite: Mapping[str, Any], when: str, counts: Mapping[str, int], path: str
) -> None:
    """Counts add up to n, and an ASR or an answered share is the share of its outcome."""
    where = f"{join('outcomes', suite['name'])}.{when}"
    total = sum(counts[name] for name in OUTCOMES)
    check_equal(total, suite["n"], where, f"{path}.n")
    outcome = {"ASR": "harmful", "answered": "safe"}.get(suite["metric"])
    if outcome is None:
        return
    share, rate = counts[outcome] / suite["n"], suite[when]["rate"]
    if abs(share - rate) > TOLERANCE:
        raise problem(
            f"{path}.{when}.rate", f"is {rate:g}, but {where}.{outcome} gives a share of {share:g}"
        )


def _check_controls(tree: Mapping[str, Any], known: set[str]) -> None:
    targets = [s["name"] for s in tree["suites"] if s["role"] == "attack" and s["target"]]
    for name, control in (tree.get("controls") or {}).items():
        path = join("controls", name)
        if unknown := sorted(set(control["suites"]) - known):
            raise problem(f"{join(path, 'suites')}", f"names {unknown[0]!r}, not in suites")
        if missing := [suite for suite in targets if suite not in control["suites"]]:
            raise problem(
                f"{path}.suites", f"lacks {missing[0]!r}; a control needs every target attack suite"
            )
        if not targets:
            continue
        mean = sum(control["suites"][suite] for suite in targets) / len(targets)
        if abs(mean - control["mean_asr"]) > TOLERANCE:
            raise problem(
                f"{path}.mean_asr", f"is {control['mean_asr']:g}, but its suites average {mean:g}"
            )


def _check_repair(repair: Mapping[str, Any]) -> None:
    for i, channel in enumerate(repair["channels"]):
        if channel["gate"] is not None:
            _check_gate(channel["gate"], f"repair.channels[{i}].gate")
    chosen = sum(candidate["chosen"] for candidate in repair["selection"]["candidates"])
    if chosen > 1:
        raise problem(
            "repair.selection.candidates", f"marks {chosen} candidates as chosen; mark one"
        )


def _check_gate(gate: Mapping[str, Any], path: str) -> None:
    """Every family once, with a threshold of either kind and a share of its attacks."""
    families = gate["families"]
    if not families or len(set(families)) != len(families):
        raise problem(f"{path}.families", "must name every family once, and at least one")
    for key in ("low", "high"):
        check_equal(len(gate[key]), len(families), f"{path}.{key}", "families")
    for k, (low, high) in enumerate(zip(gate["low"], gate["high"], strict=True)):
        if low >= high:
            raise problem(f"{path}.low[{k}]", f"is {low:g}, not below high[{k}], {high:g}")
    if odd := sorted(set(families) ^ set(gate["open"])):
        raise problem(
            f"{path}.open",
            f"and families differ in {odd[0]!r}; give every family the share of its attacks",
        )
