"""One change at a time: every row of an ablation fitted, asked and set against the whole method.

The material, the diagnosis and the channel scan are those of the main job (`stages`), so that every
preset has the sites it would choose. Rows (`ablation_rows`) are fitted on a part of the material,
the same for all, kept as artefacts and asked the same test examples; a killed job goes on with the
row and the batch where it stopped:

    repairs/         the artefact of every row, or why it has none
    rows.jsonl       judged answers, bare and under every row
    ablation.json, ablation.html, ablation.md

A row shows what a part is worth; nothing is chosen by it. Not here: the figures
(`care.evaluation.ablation_table`) and the page (`care.report.ablation`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache

from care.defenses.artefact import FACTS
from care.defenses.monitors.monitor import Monitor
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.diagnosis.full_config import BRIEF
from care.diagnosis.results import Diagnosis
from care.errors import FitError
from care.evaluation.ablation_table import AblationRow, AblationTable, Planned, ablation_rows
from care.evaluation.results import Results
from care.pipeline.ablation_rows import CHANGES, Change
from care.pipeline.config import RepairJob
from care.pipeline.material_parts import apart, thinned
from care.pipeline.selection import preset_sites
from care.pipeline.splits import Splits
from care.pipeline.stages import COMPARED, Stages
from care.pipeline.workflow import open_run
from care.runs.progress import Bar, silent

MOST = 240
"""Requests of each class that rows are fitted on at most."""


def ablate(
    job: RepairJob, progress: Bar | None = None, changes: Sequence[Change] = CHANGES
) -> AblationTable:
    """The whole ablation; the job's preset is that of the sites that channels are scanned at."""
    splits = Splits(job)
    with open_run(job, splits) as run:
        with run.stage("model"):
            work = Stages(job, run, progress, splits=splits)
        fitter = work.fitter()
        diagnosis = work.channels(fitter, work.diagnosis(fitter, BRIEF))
        watching = monitors(work, fitter, changes)

        @cache
        def fitter_without(names: tuple[str, ...]) -> Fitter:
            """One for all rows of a material, which share what is read of it."""
            material = thinned(apart(fitter.material, names), MOST)
            return Fitter(work.vlm, material, fitter.config, job.batch)

        planned: list[Planned] = []
        repairs: list[tuple[str, Repair]] = []
        with run.stage("fits"), (progress or silent)("fits", len(changes)) as bar:
            for change in changes:
                beside = change.beside or change.of
                folder = run.inside(f"repairs/{re.sub(r'[^A-Za-z0-9]+', '-', change.name)}")
                try:
                    repair = Repair.load(folder) if (folder / FACTS).exists() else None
                    if repair is None:
                        own = fitter_without(change.without)
                        repair = fitted(change, own, diagnosis, watching[change.without])
                        repair.save(folder)
                    repairs.append((change.name, repair))
                    planned.append(Planned(change.name, beside))
                except FitError as error:
                    planned.append(Planned(change.name, beside, failed=str(error)))
                bar.advance(1)
        suites = [s for s in work.suites("test") if s.role != "utility" or s.name in COMPARED]
        results = work.ask(suites, [None, *repairs], "evaluation")
        rows = ablation_rows(results, planned, job.run.seed)
        run.check_there()
    return AblationTable(tuple(rows), claims(rows, diagnosis))


def monitors(
    work: Stages, fitter: Fitter, changes: Sequence[Change]
) -> dict[tuple[str, ...], tuple[Monitor, ...]]:
    """The main job's monitors by the suites that they were fitted and chosen without.

    None of rows that don't ask for any, and where they can't be fitted.
    """
    found: dict[tuple[str, ...], tuple[Monitor, ...]] = {c.without: () for c in changes}
    wanted = dict.fromkeys(c.without for c in changes if c.watched)
    if not wanted or fitter.config.monitors is None:
        return found
    table = work.bare_answers()
    for without in wanted:
        kept = Results([row for row in table.rows if row["suite"] not in without])
        name = f"monitors-without-{'-'.join(without)}" if without else "monitors"
        with suppress(FitError):
            material = apart(fitter.material, without)
            own = Fitter(work.vlm, material, fitter.config, work.job.batch)
            found[without] = work.monitors(own, kept, name).monitors
    return found


def fitted(
    change: Change, fitter: Fitter, diagnosis: Diagnosis, watching: Sequence[Monitor] = ()
) -> Repair:
    """The repair of one row, at the sites that its preset would choose.

    FitError where there are no monitors of what it watches.
    """
    own = fitter.with_config(change.config)
    repair = Repair.of(
        own.repair(change.places(preset_sites(change.of, fitter.vlm, diagnosis)), change.of)
    )
    repair = repair if change.only is None else repair.only(change.only)
    if change.watched:
        kept = tuple(monitor for monitor in watching if monitor.reads in change.watched)
        if not kept:
            raise FitError(
                f"There is no monitor of {', '.join(change.watched)} for the row {change.name!r}: "
                "too few harmful or harmless answers to fit one on, or none were asked for."
            )
        repair = replace(repair, monitors=kept)
    repair = repair if change.channels else repair.monitors_only()
    return replace(repair, name=change.name)


# -- the paper's claims ----------------------------------------------------------------------------


def claims(rows: Sequence[AblationRow], diagnosis: Diagnosis) -> tuple[str, ...]:
    """A sentence for each of the paper's two ablations and two claims that can be told here."""
    by_name = {row.name: row for row in rows}
    found: list[str] = []
    for preset in ("paper", "corrected"):
        for part, attacks in (("text", "in words"), ("visual", "with pictures")):
            row = by_name.get(f"{preset}: without {part}")
            if row is None or row.against is None:
                continue
            change, against = row.against.change, row.against
            shown = change.low > 0 and against.p_holm < 0.05
            found.append(
                f"Without its {part} channels the {preset} repair lets {100 * change.rate:+.0f} "
                f"points [{100 * change.low:+.0f}, {100 * change.high:+.0f}] more attacks through: "
                f"that they are needed, for attacks {attacks} above all, is "
                f"{'found' if shown else 'not found'} here."
            )
    for row in diagnosis.comparison:
        if row.matched_by == "kind":
            found.append(
                f"Removing FFN outputs changes refusal log-odds by {row.ffn.rate:.2f} nats, "
                f"attention outputs by {row.mhsa.rate:.2f}: FFN far above attention is "
                f"{'found' if row.survives else 'not found'} here."
            )
    for name, rho in diagnosis.rank_correlation.items():
        found.append(
            f"{name.replace('_', ' ').capitalize()} and the effect of a layer agree by "
            f"ρ = {rho.rho:.2f} [{rho.low:.2f}, {rho.high:.2f}]: that what can be read peaks where "
            f"the effect does is {'found' if rho.low > 0 else 'not found'} here."
        )
    return tuple(found)
