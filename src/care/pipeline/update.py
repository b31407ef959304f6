"""`care update`: new attacks are folded into a saved repair, and what that changes is measured.

    material.json   the model's answers to the requests to fold in, by outcome
    rows.jsonl      judged answers, bare, before and after, to requests that weren't folded in
    repair/         the new artefact
    update.json     what was folded in, and what became of channels, monitors and attacks
    table.json      the scorecard, as of an evaluation

Half of the goals of either file are folded in and the others asked, by the digests of goals; of so
few goals that nothing would be left to ask, all are folded in and the same asked, which the figures
then say. With counts of a `curve` the repair is also asked with so many of the attacks that worked,
each count with those of the smaller ones. A killed job goes on; what it folds in again is equal up
to rounding. Not here: what folding in is (`care.defenses.repair.folding`).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from care.data.digests import suite_digest
from care.data.example import Suite
from care.data.jsonl import read_suite
from care.defenses.material import Sorted, ask, material_to, sorted_from
from care.defenses.repair.folding import (
    Folded,
    answer_length,
    check_new,
    check_remembers,
    folded,
    new_to,
    updates_of,
)
from care.defenses.repair.repair import Repair
from care.evaluation.ablation_table import ASR_CHANGE, paired_change
from care.evaluation.leak_check import repair_leaks
from care.evaluation.results import Results
from care.evaluation.runner import evaluate as run_evaluation
from care.evaluation.scorecard import scorecard
from care.evaluation.scores import RunFacts, Scorecard
from care.evaluation.tabulation import TABLE
from care.judges.refusal import certainly_refused
from care.judges.rules import rules_for
from care.models.identity import load_pinned
from care.models.vlm import VLM
from care.pipeline.config import UpdateJob
from care.runs.environment import started
from care.runs.kept_batches import KeptBatches
from care.runs.progress import Bar, silent
from care.runs.run import Run
from care.runs.stages import stage_json
from care.statistics.intervals import Interval
from care.typed import Count, Share, from_tree, to_tree

BEFORE, AFTER = "before", "after"
"""Names of the repair in rows, without and with what is folded in."""
LEAST_GOALS = 16
"""Goals of a file of which half are kept apart; of fewer, none are."""
JSON_NAME = "update.json"


@dataclass(frozen=True)
class ChannelChange:
    """A channel before and after."""

    site: str
    """Where it is."""
    modality: str
    """What carries its attacks."""
    opened_before: dict[str, Share]
    """Share of each family's attacks for which its gate opens, cross-fitted."""
    opened_after: dict[str, Share]
    """The same after."""
    benign_before: Share | None
    """The same of benign requests."""
    benign_after: Share | None
    """The same after."""


@dataclass(frozen=True)
class MonitorChange:
    """A monitor before and after."""

    reads: str
    """What it reads."""
    before: float
    """The score above which it alarmed."""
    after: float
    """The same after."""


@dataclass(frozen=True)
class Update:
    """What was folded in, and what that changed."""

    folded: Folded
    """What was folded in."""
    asked: Count
    """Attacks that were asked."""
    change: Annotated[Interval, ASR_CHANGE] | None
    """Attack success after less that before, on the same attacks; none for a single goal."""
    p: Share | None
    """Its p by sign flips of whole goals, two-sided."""
    channels: tuple[ChannelChange, ...]
    """The channels."""
    monitors: tuple[MonitorChange, ...]
    """The monitors."""
    held_out: bool = True
    """Whether the attacks that were asked are other goals than those folded in."""
    leaking: Count = 0
    """Those of them whose goals the repair was fitted on before, in whatever attack."""


def update(job: UpdateJob, progress: Bar | None = None) -> tuple[Update, Scorecard]:
    """Fold in, ask, tabulate; what changed, and the scorecard of all rows."""
    attacks, benign = suites_of(job)
    before = Repair.load(job.repair)
    check_remembers(before)  # before a model is loaded
    length = job.max_new_tokens or answer_length(before)
    folding, asked, apart = parted(attacks, benign)
    check_new(before, folding)
    with Run(job.run.out, resume=job.run.resume, config=job.config()) as run:
        run.pin("suites", {suite.name: suite_digest(suite) for suite in (*attacks, *benign)})
        run.pin("repairs", {BEFORE: before.digest()})
        leaks = repair_leaks({BEFORE: job.repair}, asked, allow=True)
        run.record(
            **started(job.model.shown, job.run.seed),
            suites={suite.name: suite.facts() for suite in asked},
            leaks="checked" if apart else "allowed",
            repair_leaks=to_tree(leaks),
        )
        vlm = load_pinned(run, job.model.name, job.model.load)
        before = Repair.load(job.repair, vlm)
        answers = _answers(job, run, vlm, folding, length, progress)
        made = _made(job, vlm, before, answers)
        defenses = [None, (BEFORE, before), *made.items()]
        with run.stage("evaluation"):
            table = run_evaluation(
                vlm,
                asked,
                defenses,
                judge=rules_for(job.model),
                run=run,
                seed=job.run.seed,
                batch_size=job.batch,
                max_new_tokens=length,
                stop=certainly_refused,
                progress=progress,
                hold_to_defenses=False,  # folded in anew when resumed, equal up to rounding
            )
        after = made[AFTER]
        run.check_there()
        after.save(run.inside("repair"))
        leaking = leaks[BEFORE].found.get(attacks[0].name)
        found = _told(before, after, table, job.run.seed)
        found = replace(found, held_out=apart, leaking=leaking.examples if leaking else 0)
        run.write_json(JSON_NAME, to_tree(found))
        facts = from_tree(RunFacts, run.manifest, strict=False, what="The manifest of the run")
        card = replace(scorecard(run.rows(), seed=job.run.seed), run=facts)
        tree = to_tree(card, "The scorecard")
        run.write(TABLE, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    return found, card


def suites_of(job: UpdateJob) -> tuple[list[Suite], list[Suite]]:
    """The attacks and the benign requests of the user's files."""
    benign = [] if job.benign is None else [read_suite(job.benign, "over_refusal")]
    return [read_suite(job.attacks, "attack")], benign


def parted(
    attacks: Sequence[Suite], benign: Sequence[Suite]
) -> tuple[list[Suite], list[Suite], bool]:
    """What is folded in, what is asked, and whether these are other goals.

    Of a suite of few goals everything is both.
    """
    folding: list[Suite] = []
    asked: list[Suite] = []
    apart: list[bool] = []
    for suite in (*attacks, *benign):
        goals = sorted({e.goal or e.prompt for e in suite}, key=_order)
        first = set(goals[: -(-len(goals) // 2)])
        several = len(goals) >= LEAST_GOALS
        apart.append(several)
        parts = ([e for e in suite if ((e.goal or e.prompt) in first) is side or not several]
                 for side in (True, False))  # fmt: skip
        for side, part in zip((folding, asked), parts, strict=True):
            side.append(replace(suite, examples=tuple(part)))
    return folding, asked, all(apart[: len(attacks)])


def _order(goal: str) -> str:
    return hashlib.sha256(goal.strip().lower().encode()).hexdigest()


def _answers(
    job: UpdateJob,
    run: Run,
    vlm: VLM,
    folding: Sequence[Suite],
    length: int,
    progress: Bar | None,
) -> Sorted:
    """The model's own answers to what is folded in, asked once."""
    examples = [example for suite in folding for example in suite]

    def make() -> dict[str, Any]:
        with (progress or silent)("material", len(examples)) as bar:
            found = ask(
                vlm,
                examples,
                judge=rules_for(job.model),
                batch_size=job.batch,
                max_new_tokens=length,
                progress=bar.advance,
                kept=KeptBatches(run, "material"),
            )
        return material_to(found)

    return sorted_from(stage_json(run, "material", make), examples)


def _made(job: UpdateJob, vlm: VLM, before: Repair, answers: Sorted) -> dict[str, Repair]:
    """The repair with everything, after those with a part of the attacks that worked."""
    made, count = {}, answers.count
    answers = new_to(before, answers)
    known, most = count - answers.count, len(answers.complied)
    if job.counts and job.counts[-1] >= most:
        warnings.warn(
            f"{most} attacks worked, so the curve to {job.counts[-1]} ends there, as {AFTER!r}.",
            stacklevel=2,
        )
    for count in job.counts:
        if count >= most:
            break
        part = answers.part({"complied": range(count), "refused": (), "answered": ()})
        made[f"after {count}"] = Repair.of(folded(before, vlm, part, batch_size=job.batch))
    return made | {AFTER: Repair.of(folded(before, vlm, answers, known, job.batch))}


def _told(before: Repair, after: Repair, table: Results, seed: int) -> Update:
    rows = [row for row in table.rows if row["role"] == "attack" and row["defense"] == BEFORE]
    several = len({row["goal"] or row["prompt"] for row in rows}) > 1
    change, p = paired_change(table, BEFORE, AFTER, seed) if several else (None, None)
    return Update(
        folded=from_tree(Folded, updates_of(after)[-1], what="What was folded in"),
        asked=len(rows),
        change=change,
        p=p,
        channels=tuple(
            ChannelChange(
                str(old.site),
                old.modality,
                dict(old.gate.opened) if old.gate else {},
                dict(new.gate.opened) if new.gate else {},
                old.gate and old.gate.opened_benign,
                new.gate and new.gate.opened_benign,
            )
            for old, new in zip(before.channels, after.channels, strict=True)
        ),
        monitors=tuple(
            MonitorChange(old.reads, old.threshold, new.threshold)
            for old, new in zip(before.monitors, after.monitors, strict=True)
        ),
    )
