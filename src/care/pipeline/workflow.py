"""The main job: attack, diagnose, fit, select, prove, report; and its parts on their own.

Stages write what they found into the run's folder, so that a killed job goes on where it stopped
and ends with the same numbers:

    material.json   answers to the fit split, by outcome
    decisions.safetensors  activations at the decision position, of the same requests
    batches/        finished batches of the stage under way
    scan.jsonl      what each part of each layer does, as it is measured
    sites.json      which components carry the attacks
    effects.json, neurons.json, curves.json   causal effects, neurons, how far to trust both
    neuron-answers/ answers under neuron suppression, where there is any
    channels.json   at which sites the unsafe channels can be closed
    screening.json  first tokens under every candidate on the validation split
    selection/      answers under the best candidates on the validation split
    fits/, tuning/  in place of both with `tune`: repairs with other settings, and their answers
    monitors/, monitors.json   what watches requests and answers, and what else was tried
    repair/         the chosen artefact
    rows.jsonl      judged answers on the test split: bare, repaired, controls
    report.html, report.json

What each stage does is in `care.pipeline.stages`.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from care.data.example import Example
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.diagnosis.full_config import BRIEF, DiagnosisConfig
from care.diagnosis.results import Diagnosis
from care.diagnosis.token_attribution import TokenScores, token_scores
from care.errors import UsageError
from care.evaluation.attack_parts import in_turns, take_over
from care.evaluation.config import RULES, JudgingSpec
from care.evaluation.rejudge import judged, open_verdicts
from care.evaluation.results import Results
from care.evaluation.tabulation import judge_and_tabulate
from care.judges.labels import read_labels
from care.judges.registry import check_judge
from care.judges.rules import RulesJudge
from care.models.sites import Site
from care.pipeline.config import RepairJob
from care.pipeline.made_pictures import CHECKPOINTS, make_attempts
from care.pipeline.selection import Candidate
from care.pipeline.splits import Splits, digests_of
from care.pipeline.stages import Stages
from care.pipeline.tuned_repair import tuned
from care.report.build import answer_pairs, attribution, report_tree
from care.report.files import write_diagnosis, write_report
from care.runs.environment import peak_memory_gib, started
from care.runs.merging import finished
from care.runs.progress import Bar
from care.runs.run import Run
from care.runs.shards import FOLDER, Shard


def open_run(job: RepairJob, splits: Splits) -> Run:
    """The folder of a job, opened or gone on with; what is wrong with its suites shows first."""
    named = splits.named
    if job.names_suites:
        splits.suites("fit")
    run = Run(job.run.out, resume=job.run.resume, config=job.config())
    try:
        if job.names_suites:
            run.pin("files", digests_of(job, named))
        quick = {"quick": job.quickly} if job.quick else {}
        run.record(**started(job.model.shown, job.run.seed), **quick)
        if job.pgd and run.path.parent.name != FOLDER:
            take_over(run, None, CHECKPOINTS)  # what shards have descended
    except BaseException:
        run.close()
        raise
    return run


@dataclass(frozen=True)
class _Proof:
    """What is left of a job when the model has been let go."""

    table: Results
    """Judged answers to the test."""
    parts: list[str]
    """Names of the repair's parts in it."""
    controls: list[str]
    """Names of its controls."""
    repair: Repair
    """The repair."""
    selection: Any
    """How it was chosen."""
    diagnosis: Diagnosis
    """At which sites."""
    tests: dict[tuple[str, str], Example]
    """The test by suite and id."""
    scores: list[TokenScores]
    """Which tokens carry attacks."""
    rules: RulesJudge
    """The offline judge."""


def repair(job: RepairJob, progress: Bar | None = None) -> dict[str, Any]:
    """The whole job; writes the report and the artefact, and returns the report's tree.

    Judges that are asked for besides the rules judge the answers to the test when the model has
    been let go; the report's figures are the first one's. What is fitted on and chosen is told by
    the rules.
    """
    for wanted in job.judging.judges:
        check_judge(wanted)
    labels = read_labels(job.judging.labels) if job.judging.labels else None
    splits = Splits(job)
    with open_run(job, splits) as run:
        _refuse_a_sample(run)
        proof = _prove(job, run, progress, splits)
        table = _judged(job, run, proof, labels, progress)
        with run.stage("report"):
            tree = report_tree(
                table,
                proof.parts,
                proof.controls,
                proof.repair,
                job.preset,
                proof.selection,
                proof.diagnosis,
                run.manifest,
            )
            tree["examples"] = answer_pairs(table, proof.tests)
            tree["attribution"] = attribution(proof.scores)
            told = {key: tree[key] for key in ("suites", "certified") if tree.get(key)}
            proof.repair.manifest["evaluation"] = told
            _label(proof.repair, job)
            proof.repair.save(run.inside("repair"))
        tree["manifest"] = dict(run.manifest)
        tree["cost"] = {
            "stages": [{"name": s["name"], "seconds": s["seconds"]} for s in run.stages],
            "total_seconds": sum(s["seconds"] for s in run.stages),
            "peak_memory_gib": peak_memory_gib() or 0.0,
            "machine": run.manifest["machine"],
        }
        run.check_there()
        write_report(tree, job.run.out)
    return json.loads((job.run.out / "report.json").read_text(encoding="utf-8"))


def _prove(job: RepairJob, run: Run, progress: Bar | None, splits: Splits) -> _Proof:
    """Everything that asks the model."""
    with run.stage("model"):
        work = Stages(job, run, progress, splits=splits)
    fitter = work.fitter()
    diagnosis = work.channels(fitter, work.diagnosis(fitter, BRIEF))
    chosen, selection = _chosen(work, fitter, diagnosis)
    table, parts, controls = work.prove(chosen)
    suites = work.suites("test")
    with run.stage("attribution"):
        site = Site(chosen.repair.sites[0].layer, "layer_out")
        scores = token_scores(work.vlm, [e for suite in suites for e in suite], site)
    _record_suites(run, work)
    tests = {(suite.name, e.id): e for suite in suites for e in suite}
    return _Proof(
        table, parts, controls, chosen.repair, selection, diagnosis, tests, scores, work.judge
    )


def _chosen(work: Stages, fitter: Fitter, diagnosis: Diagnosis) -> tuple[Candidate, Any]:
    """The repair and what is told of its selection: by candidates, or by a search of settings."""
    if work.job.tune:
        return tuned(work, fitter, diagnosis)
    return work.select(fitter, diagnosis)


def _judged(
    job: RepairJob,
    run: Run,
    proof: _Proof,
    labels: list[dict[str, Any]] | None,
    progress: Bar | None,
) -> Results:
    """The answers to the test as the first judge sees them, where others than the rules or labels
    are asked for; the table of all is written."""
    if job.judging == JudgingSpec():
        return proof.table
    gc.collect()  # the model makes room for the judges
    seed, tests = job.run.seed, proof.tests
    card = judge_and_tabulate(run, job.judging, proof.rules, labels, tests, seed, False, progress)
    run.record(judged_by=card.judge)
    if card.judge == RULES:
        return proof.table
    verdicts = open_verdicts(run)
    try:
        return Results(judged(run.rows(), verdicts.all(), card.judge))
    finally:
        verdicts.close()


def _refuse_a_sample(run: Run) -> None:
    if run.manifest.get("sampled"):
        raise UsageError(
            f"{run.path} holds a diagnosis on a sample of the examples, and a repair is fitted on "
            "all of them: give another --out"
        )


def _label(repair: Repair, job: RepairJob) -> None:
    """Have the artefact say that it was made on a part of the examples."""
    if job.quick:
        repair.manifest["quick"] = job.quickly


def _record_suites(run: Run, work: Stages) -> None:
    run.record(
        suites={
            f"{suite.name}/{split}": suite.facts()
            for split, suites in work.splits.items()
            for suite in suites
        }
    )


def diagnose(job: RepairJob, progress: Bar | None = None) -> dict[str, Any]:
    """Only the diagnosis, whole; what diagnosis.json holds, beside which is diagnosis.html.

    Of the small world a sample is asked, unless a repair was begun in the folder, which asks all.
    UsageError for a quick one of the small world.
    """
    if job.quick and not job.attacks:
        raise UsageError(
            "a diagnosis of the small world is quick as it is, on a sample of the examples: leave "
            "out --quick, or pass --attacks and --benign"
        )
    splits = Splits(job)
    with open_run(job, splits) as run:
        # A run that a repair was begun in asks all of the examples, and goes on to.
        whole = bool(run.manifest["pinned"].get("suites")) and not run.manifest.get("sampled")
        sampled = not job.attacks and not whole
        run.record(sampled=sampled)
        with run.stage("model"):
            work = Stages(job, run, progress, sampled, splits)
        fitter = work.fitter()
        found = work.channels(fitter, work.diagnosis(fitter, DiagnosisConfig()))
        run.check_there()
    title = f"Diagnosis of {job.model.name or 'the embedded model'}"
    page = write_diagnosis(found, job.run.out, title)
    return json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


def fit(job: RepairJob, progress: Bar | None = None) -> Path:
    """Fit and select, without the proof; the folder of the artefact."""
    splits = Splits(job)
    with open_run(job, splits) as run:
        _refuse_a_sample(run)
        work = Stages(job, run, progress, splits=splits)
        fitter = work.fitter()
        diagnosis = work.channels(fitter, work.diagnosis(fitter, BRIEF))
        chosen, selection = _chosen(work, fitter, diagnosis)
        run.write_json("selection.json", selection)
        _label(chosen.repair, job)
        return chosen.repair.save(run.inside("repair"))


def answer_shard(
    job: RepairJob, shard: Shard, progress: Bar | None = None
) -> tuple[Path, tuple[Shard, ...]]:
    """Answer what is in one shard of the requests that the job is fitted on; the folder of its run.

    Pictures come before: where other shards haven't made their turns of them yet, those are told,
    and nothing is answered.
    """
    own = replace(job.run, out=shard.folder(job.run.out))
    job = replace(job, run=own, shard=None)
    splits = Splits(job)
    with open_run(job, splits) as run:
        run.record(shard=str(shard))
        work = Stages(job, run, progress, splits=splits)
        if job.pgd:
            make = partial(make_attempts, job, run, work.vlm, splits.plan, progress=progress)
            if waiting := in_turns(run, shard, make):
                return run.path, waiting
            take_over(run, shard, CHECKPOINTS)
        work.answer_shard(shard)
        run.record(**finished(run))
        return run.path, ()
