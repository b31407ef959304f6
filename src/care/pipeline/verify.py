"""`care verify`: is a repair what it should be on this model and this machine? One page, yes or no.

The model's own numbers are checked first (`care.evaluation.model_checks`), then a small probe is
answered and judged (`care.evaluation.probe`). Whoever needs figures to rely on takes `care
evaluate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from care.data.digests import digest_of
from care.defenses.loading import load_defense
from care.evaluation.leak_check import repair_leaks
from care.evaluation.model_checks import (
    batch_isolation,
    cost_per_token,
    off_is_off,
    prefill_and_decode,
)
from care.evaluation.probe import NAME, probe, probe_checks, probe_suites, requests
from care.evaluation.verification import Check, Verification, verdict
from care.judges.refusal import certainly_refused
from care.judges.rules import rules_for
from care.pipeline.config import VerifyJob
from care.runs.files import to_json, write_whole
from care.runs.progress import Bar
from care.typed import to_tree

PAGE, FACTS = "verification.md", "verification.json"
"""The page, and the same for programs."""

_LOOKED_AT = 6
"""Requests that numbers are compared on."""


def verify(job: VerifyJob, progress: Bar | None = None) -> Verification:
    """Check a repair on a model and write the page; raises what loading either of them does.

    UsageError also for goals of the probe that the repair was fitted on.
    """
    suites = probe_suites(job.probe, job.model, job.seed)
    load_defense(job.repair)  # a damaged one shows before the model is loaded
    repair_leaks({NAME: job.repair}, suites)
    vlm = job.model.load()
    defense = load_defense(job.repair, vlm)
    batch, length = job.model.batch(None), job.model.answer_length(job.probe.max_new_tokens)
    how: dict[str, Any] = {"batch_size": batch, "max_new_tokens": length}
    attacks = requests(suites, _LOOKED_AT)
    checks: list[Check] = [
        off_is_off(vlm, defense, attacks),
        batch_isolation(vlm, defense, attacks, **how),
        prefill_and_decode(vlm, defense, attacks),
        cost_per_token(vlm, defense, requests(suites, batch, True), job.max_cost, **how),
    ]
    found = probe(
        vlm,
        suites,
        [(NAME, defense)],
        judge=rules_for(job.model),
        stop=certainly_refused,
        progress=progress,
        seed=job.seed,
        **how,
    )
    told = (*checks, *probe_checks(found, job.max_asr, job.max_lost))
    made = Verification(
        model=job.model.shown,
        repair=str(job.repair),
        digest=digest_of(defense),
        passed=verdict(told),
        checks=told,
    )
    write(made, job.out)
    return made


def write(made: Verification, out: Path) -> None:
    """The page of a verification and its JSON."""
    write_whole(out / FACTS, to_json(to_tree(made, "The verification"), indent=1) + "\n")
    write_whole(out / PAGE, made.page())
