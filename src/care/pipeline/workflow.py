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

import json
from pathlib import Path
from typing import Any

from care.data.digests import suite_digest
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.diagnosis.full_config import BRIEF, DiagnosisConfig
from care.diagnosis.results import Diagnosis
from care.diagnosis.token_attribution import token_scores
from care.errors import UsageError
from care.models.sites import Site
from care.pipeline.config import QUICKLY, RepairJob
from care.pipeline.selection import Candidate
from care.pipeline.splits import check_files, own_files
from care.pipeline.stages import Stages
from care.pipeline.tuned_repair import tuned
from care.report.build import answer_pairs, attribution, report_tree
from care.report.files import write_diagnosis, write_report
from care.runs.environment import peak_memory_gib, started
from care.runs.progress import Bar
from care.runs.run import Run


def open_run(job: RepairJob) -> Run:
    """The folder of a job, opened or gone on with; what is wrong with its files shows first."""
    check_files(job)
    run = Run(job.run.out, resume=job.run.resume, config=job.config())
    try:
        run.pin("files", _digests(job))
        quick = {"quick": QUICKLY} if job.quick else {}
        run.record(**started(job.model.shown, job.run.seed), **quick)
    except BaseException:
        run.close()
        raise
    return run


def _digests(job: RepairJob) -> dict[str, str]:
    """SHA-256 of the user's own suites as a whole, of which a split is looked at when it's due."""
    names = ("attacks", "benign")
    return {name: suite_digest(each) for name, each in zip(names, own_files(job), strict=False)}


def repair(job: RepairJob, progress: Bar | None = None) -> dict[str, Any]:
    """The whole job; writes the report and the artefact, and returns the report's tree."""
    with open_run(job) as run:
        _refuse_a_sample(run)
        with run.stage("model"):
            work = Stages(job, run, progress)
        fitter = work.fitter()
        diagnosis = work.channels(fitter, work.diagnosis(fitter, BRIEF))
        chosen, selection = _chosen(work, fitter, diagnosis)
        table, parts, controls = work.prove(chosen)
        with run.stage("report"):
            tests = {e.id: e for suite in work.suites("test") for e in suite}
            tree = report_tree(
                table,
                parts,
                controls,
                chosen.repair,
                job.preset,
                selection,
                diagnosis,
                run.manifest,
            )
            tree["examples"] = answer_pairs(table, tests)
            site = Site(chosen.repair.sites[0].layer, "layer_out")
            tree["attribution"] = attribution(token_scores(work.vlm, list(tests.values()), site))
            _record_suites(run, work)
            told = {key: tree[key] for key in ("suites", "certified") if tree.get(key)}
            chosen.repair.manifest["evaluation"] = told
            _label(chosen.repair, job)
            chosen.repair.save(run.inside("repair"))
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


def _chosen(work: Stages, fitter: Fitter, diagnosis: Diagnosis) -> tuple[Candidate, Any]:
    """The repair and what is told of its selection: by candidates, or by a search of settings."""
    if work.job.tune:
        return tuned(work, fitter, diagnosis)
    return work.select(fitter, diagnosis)


def _refuse_a_sample(run: Run) -> None:
    if run.manifest.get("sampled"):
        raise UsageError(
            f"{run.path} holds a diagnosis on a sample of the examples, and a repair is fitted on "
            "all of them: give another --out"
        )


def _label(repair: Repair, job: RepairJob) -> None:
    """Have the artefact say that it was made on a part of the examples."""
    if job.quick:
        repair.manifest["quick"] = QUICKLY


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
    if job.quick and job.attacks is None:
        raise UsageError(
            "a diagnosis of the small world is quick as it is, on a sample of the examples: leave "
            "out --quick, or pass --attacks and --benign"
        )
    with open_run(job) as run:
        # A run that a repair was begun in asks all of the examples, and goes on to.
        whole = bool(run.manifest["pinned"].get("suites")) and not run.manifest.get("sampled")
        sampled = job.attacks is None and not whole
        run.record(sampled=sampled)
        with run.stage("model"):
            work = Stages(job, run, progress, sampled)
        fitter = work.fitter()
        found = work.channels(fitter, work.diagnosis(fitter, DiagnosisConfig()))
        run.check_there()
    title = f"Diagnosis of {job.model.name or 'the embedded model'}"
    page = write_diagnosis(found, job.run.out, title)
    return json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


def fit(job: RepairJob, progress: Bar | None = None) -> Path:
    """Fit and select, without the proof; the folder of the artefact."""
    with open_run(job) as run:
        _refuse_a_sample(run)
        work = Stages(job, run, progress)
        fitter = work.fitter()
        diagnosis = work.channels(fitter, work.diagnosis(fitter, BRIEF))
        chosen, selection = _chosen(work, fitter, diagnosis)
        run.write_json("selection.json", selection)
        _label(chosen.repair, job)
        return chosen.repair.save(run.inside("repair"))
