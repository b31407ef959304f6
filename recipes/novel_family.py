"""How fast a repair learns a family of attacks that it was fitted without.

    python -m recipes.novel_family runs/demo text-jailbreak pictured-goal [--counts 1,4,16,64]

In the folder of a finished main job (`care repair`; better a copy of it), for each family: channels
and monitors are fitted on the material without it, at the job's own sites and settings, and its
validation answers are left out of thresholds and choices. Then so many of its attacks that worked
are folded in (`Repair.partial_fit`), and its test suite is asked, beside the harmless suites, under
the whole repair and under its edits alone. The sites were scanned with the family there, so what
shows is what rows teach, not what a diagnosis would miss. Answers join the job's rows.jsonl, a
killed run goes on, the figures are in novel-FAMILY.json, and the repair that hasn't seen the family
is in novel-FAMILY.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from care.data.example import Suite
from care.defenses.material import Sorted
from care.defenses.monitors.fitting import MonitorConfig
from care.defenses.repair.channel import Modality
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.folding import folded
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.evaluation.results import Results
from care.models.sites import Site
from care.pipeline.config import RepairJob
from care.pipeline.material_parts import apart
from care.pipeline.splits import Splits
from care.pipeline.stages import Stages
from care.pipeline.workflow import open_run
from care.runs.progress import Progress
from care.runs.run import Run
from care.runs.spec import RunSpec

HARMLESS = ("benign", "benign-image", "lookalike", "benign-wrapped", "benign-pictured")
"""Suites that are asked besides."""


def main() -> None:
    """Every family in turn."""
    parser = argparse.ArgumentParser(description="How fast a repair learns a new family.")
    parser.add_argument("run", type=Path, help="folder of a finished main job, or a copy of it")
    parser.add_argument("families", nargs="+", help="attack suites of the job")
    parser.add_argument("--counts", default="1,4,16,64", help="attacks that are folded in")
    asked = parser.parse_args()
    counts = [int(count) for count in asked.counts.split(",")]
    job = RepairJob(run=RunSpec(asked.run, resume=True))
    splits = Splits(job)
    with open_run(job, splits) as run:
        work = Stages(job, run, Progress, splits=splits)
        for family in asked.families:
            found = curve(work, run, family, counts)
            run.write_json(f"novel-{family}.json", found)
            print(json.dumps(found, indent=1))


def curve(work: Stages, run: Run, family: str, counts: Sequence[int]) -> dict[str, object]:
    """Attack success and harmless requests answered by the number of attacks folded in."""
    fitter = work.fitter()
    repair = left_out(work, run, fitter, family)
    repair.save(run.inside(f"novel-{family}"))
    learned = {0: repair} | {
        count: Repair.of(folded(repair, work.vlm, part, batch_size=work.job.batch))
        for count, part in samples(fitter, family, counts).items()
    }
    defenses = [
        pair
        for count, each in learned.items()
        for pair in (
            (f"without {family}, +{count}", each),
            (f"without {family}, +{count}, edits only", each.edits_only()),
        )
    ]
    suites = [s for s in work.suites("test") if s.name == family or s.name in HARMLESS]
    table = work.ask(suites, [None, *defenses], f"novel {family}")
    names = ["none", *(name for name, _ in defenses)]
    # The job's own repair, which was fitted on the family, has been asked the same.
    whole = Results([row for row in run.rows() if row["suite"] in {s.name for s in suites}])
    rows = {name: rates(table, suites, name) for name in names}
    rows |= {name: rates(whole, suites, name) for name in ("care", "edits only")
             if whole.has(family, name)}  # fmt: skip
    return {"family": family, "rows": rows, "thresholds": thresholds(learned)}


def left_out(work: Stages, run: Run, fitter: Fitter, family: str) -> Repair:
    """The job's repair as it would be had it seen no attack of the family."""
    chosen = Repair.load(run.path / "repair")
    material = apart(fitter.material, (family,))
    gate, monitors = chosen.channels[0].gate, fitter.config.monitors
    if gate is None or gate.quantile is None or fitter.config.gate is None or monitors is None:
        raise UsageError(
            f"{run.path} holds a repair without gates or monitors; pass that of `care repair`."
        )
    gate = replace(fitter.config.gate, quantile=gate.quantile)
    watching = own_sites(monitors, chosen, work.vlm.anatomy.n_layers)
    config = replace(fitter.config, gate=gate, monitors=watching)
    own = Fitter(work.vlm, material, config, work.job.batch)
    with work.inner("selection") as inner:
        table = work.ask(work.counted("validation"), [None], "selection", inner)
    kept = Results([row for row in table.rows if row["suite"] != family])
    found = work.monitors(own, kept, f"novel-monitors-{family}", remember=True)
    sites: dict[Modality, list[Site]] = {}
    for channel in chosen.channels:
        sites.setdefault(channel.modality, []).append(channel.site)
    repair = own.repair(sites)
    memory = own.remembered(repair.channels, found.memory)
    return Repair.of(replace(repair, monitors=found.monitors, memory=memory))


def own_sites(config: MonitorConfig, repair: Repair, layers: int) -> MonitorConfig:
    """Monitors at the sites of those of a repair alone."""
    sites = [monitor.site for monitor in repair.monitors if monitor.site is not None]
    depths = dict.fromkeys(site.layer / (layers - 1) for site in sites)
    kinds = dict.fromkeys(site.kind for site in sites)
    return replace(config, kinds=tuple(kinds), depths=tuple(depths))


def samples(fitter: Fitter, family: str, counts: Sequence[int]) -> dict[int, Sorted]:
    """So many attacks of the family that worked, each count with those of the smaller ones."""
    own = [n for n, (e, _) in enumerate(fitter.material.complied) if e.suite == family]
    order = np.random.default_rng(0).permutation(own).tolist()
    material = fitter.material
    parts = (material.complied, material.refused, material.answered)
    everything = Sorted(*parts, material.decisions)
    return {
        count: everything.part({"complied": order[:count], "refused": (), "answered": ()})
        for count in counts
    }


def rates(table: Results, suites: Sequence[Suite], name: str) -> dict[str, list[float]]:
    """Rate of each suite with its interval."""
    found = {suite.name: table.rate(suite.name, name) for suite in suites}
    return {suite: [round(r.rate, 4), round(r.low, 4), round(r.high, 4)]
            for suite, r in found.items()}  # fmt: skip


def thresholds(learned: dict[int, Repair]) -> dict[str, dict[str, object]]:
    """What each repair's monitors and gates are, by the number of attacks folded in."""
    return {
        str(count): {
            "monitors": {m.reads: round(m.threshold, 4) for m in repair.monitors},
            "gates": {c.modality: c.gate.opened for c in repair.channels if c.gate},
            "waiting": repair.manifest.get("updates", [{}])[-1].get("waiting", {}),
        }
        for count, repair in learned.items()
    }


if __name__ == "__main__":
    main()
