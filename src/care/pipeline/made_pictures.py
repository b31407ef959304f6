"""Universal pictures made against the bare model of a job, and the suites that show them.

    made-pgd-32, made-pgd-64, made-pgd-unconstrained    one for each radius κ that is asked for

Of each radius and split one picture is descended (`care.attacks`), on at most `DESCENDED` goals of
the split to fit on and from a start of its own; it is shown beside the goals of its split, asked in
plain words. So neither the goals nor the picture of the test were fitted on. A picture is kept in
$CARE_CACHE/attacks under a digest of all that decides it, and another job with the same model and
goals takes it from there; the run holds a copy (`pgd/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from care.attacks.config import AttackConfig
from care.attacks.facts import IMAGE
from care.attacks.job import made_of, run_attempts
from care.attacks.job import run as make_image
from care.data.example import Example, Suite
from care.data.jsonl import write_suite
from care.data.small_world.suites import OPENING
from care.data.source import cache_folder
from care.diagnosis.activation_means import spread
from care.errors import DataError
from care.evaluation.adaptive import counting
from care.models.vlm import VLM
from care.pipeline.config import UNCONSTRAINED, RepairJob
from care.pipeline.split_plan import Split
from care.runs.files import config_digest, copy_whole, write_whole
from care.runs.progress import Bar, silent
from care.runs.run import Run
from care.runs.shards import ShardTurns
from care.runs.spec import RunSpec

MADE = "made-pgd-"
"""What the names of these suites begin with."""

DESCENDED = 32
"""Goals that a picture is descended on."""

SHOWN = 120
"""Most goals of a split that a picture is shown beside."""

PICTURE = "image.png"
"""Name of a picture in its folder."""

CHECKPOINTS = "pgd/*/state*"
"""Where checkpoints of descents lie in the folder of a run, where shards make them."""

_FOLDER = "pgd"
_SPLITS: tuple[Split, ...] = ("fit", "validation", "test")


def make_pictures(
    job: RepairJob,
    run: Run,
    vlm: VLM,
    plan: Mapping[Split, Sequence[Suite]],
    split: Split,
    progress: Bar | None = None,
) -> list[Suite]:
    """The suites of one split, whose pictures are made unless they are there."""
    identity = run.manifest["pinned"]["model"]
    for radius in job.pgd:
        folder = run.inside(_FOLDER, f"{radius}-{split}")
        if (folder / IMAGE).exists():
            continue
        attack = _attack_in(job, run, plan, radius, split)
        kept = cache_folder().parent / "attacks" / config_digest(made_of(attack, None, identity))
        attack = replace(attack, run=replace(attack.run, out=kept))
        if not (kept / IMAGE).exists():
            _take_checkpoints(folder, kept)
            config = attack.pgd()
            many, label = config.steps * config.restarts, f"{MADE}{radius}, {split}"
            with run.stage(label), (progress or silent)(label, many) as bar:
                make_image(attack, counting(bar), vlm, identity)
        for name in (PICTURE, IMAGE):  # what tells that it is there comes last
            write_whole(folder / name, (kept / name).read_bytes())
    return made_suites(job, run.path, plan, split)


def make_attempts(
    job: RepairJob,
    run: Run,
    vlm: VLM,
    plan: Mapping[Split, Sequence[Suite]],
    turns: ShardTurns,
    progress: Bar | None = None,
) -> None:
    """This process's turns of the attempts at all pictures, as far as their checkpoints."""
    for radius in job.pgd:
        for split in _SPLITS:
            attack = _attack_in(job, run, plan, radius, split)
            folder = run.inside(_FOLDER, f"{radius}-{split}")
            attack = replace(attack, run=replace(attack.run, out=folder))
            if mine := turns.next(attack.pgd().restarts):
                label = f"{MADE}{radius}, {split}"
                many = attack.pgd().steps * len(mine)
                with run.stage(label), (progress or silent)(label, many) as bar:
                    run_attempts(attack, mine, counting(bar), vlm)


def _attack_in(
    job: RepairJob, run: Run, plan: Mapping[Split, Sequence[Suite]], radius: str, split: Split
) -> AttackConfig:
    """The descent of a picture, with the requests that it is descended on."""
    goals = spread(goals_of(plan["fit"]), DESCENDED)
    asked = Suite("requests", "attack", tuple(goals))
    requests = write_suite(asked, run.inside(_FOLDER) / "requests.jsonl")
    return attack_on(job, requests, radius, split, run.path)


def _take_checkpoints(folder: Path, kept: Path) -> None:
    """What shards have descended of a picture goes on from there."""
    for file in sorted(folder.glob("state*")):
        if not (kept / file.name).exists():
            copy_whole(file, kept / file.name)


def made_suites(
    job: RepairJob, path: Path, plan: Mapping[Split, Sequence[Suite]], split: Split
) -> list[Suite]:
    """The suites of one split beside the pictures that lie in the run's folder `path`."""
    goals = spread(goals_of(plan[split]), SHOWN)
    found = []
    for radius in job.pgd:
        name, picture = f"{MADE}{radius}", path / _FOLDER / f"{radius}-{split}" / PICTURE
        examples = (replace(e, suite=name, images=(picture,)) for e in goals)
        found.append(
            Suite(name, "attack", tuple(examples), source=f"made against {job.model.shown}")
        )
    return found


def goals_of(suites: Sequence[Suite]) -> list[Example]:
    """Every malicious goal of these suites once, asked in plain words without a picture.

    DataError where there is none.
    """
    found: dict[str, Example] = {}
    for suite in suites:
        for example in suite:
            goal = example.goal or example.prompt
            if example.kind == "malicious" and goal.strip():
                bare = replace(
                    example, id=f"{suite.name}-{example.id}", prompt=goal, images=(), opening=""
                )
                found.setdefault(goal.strip().lower(), bare)
    if not found:
        raise DataError("There is no malicious goal to make pictures for; leave --pgd out.")
    return list(found.values())


def attack_on(
    job: RepairJob, requests: Path | None, radius: str, split: Split, out: Path
) -> AttackConfig:
    """How the picture of a radius and split is descended."""
    seed = len(_SPLITS) * job.run.seed + _SPLITS.index(split)
    given: dict[str, Any] = {"preset": "pgd-unconstrained"}
    if radius != UNCONSTRAINED:
        given = {"preset": "pgd-32", "kappa": int(radius)}
    target = OPENING if job.model.name is None else None
    run = RunSpec(out, resume=True, seed=seed % 2**32)
    return AttackConfig(run=run, requests=requests, target=target, model=job.model, **given)
