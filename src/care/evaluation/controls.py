"""`--controls`: a repair beside what its monitors are compared with.

    random discriminant   random directions at the same sites, which alarm as often
    sees the picture      requests are read beside their pictures, at the same threshold

As often is said of harmless examples of the small world to fit on, at most 40 of each suite, and of
the undefended model's answers to them: nothing that is measured sets a threshold. Both are derived
from the one repair that is given (`care.defenses.controls`), and saved in the run's folder
(controls/), where everything that takes a defense finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from care.data.digests import digest_of
from care.data.registry import load_suite
from care.data.small_world.suites import NAMES, role
from care.defenses.controls import HARMLESS, harmless_answers, random_discriminants, seeing_control
from care.defenses.loading import load_defense
from care.defenses.monitors.features import Labelled
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.evaluation.config import EvaluationConfig, control_paths
from care.runs.run import Run

if TYPE_CHECKING:
    from care.models.vlm import VLM


def check_controls(repairs: Sequence[Path]) -> Repair:
    """The one repair that has controls; UsageError if there is none."""
    if len(repairs) != 1:
        raise UsageError(f"--controls are of one repair, got {len(repairs)}; pass one --repair.")
    repair = load_defense(repairs[0])
    if not isinstance(repair, Repair):
        raise UsageError(f"--controls are of a repair, and {repairs[0]} is none; leave them out.")
    seeing_control(repair)  # raises what is missing
    return repair


def write_controls(job: EvaluationConfig, run: Run, vlm: VLM) -> None:
    """Save the controls that aren't there yet, and hold the run to them."""
    repair, places = check_controls(job.repairs), control_paths(run.path)
    random, sees = (run.inside(*path.relative_to(run.path).parts) for path in places.values())
    with run.stage("controls"):
        if not sees.exists():
            seeing_control(repair).save(sees)
        if not random.exists():
            harmless = _harmless(job, vlm)
            random_discriminants(vlm, repair, harmless, job.run.seed, job.batch).save(random)
    digests = {name: digest_of(load_defense(path)) for name, path in places.items()}
    run.pin("repairs", digests)


def _harmless(job: EvaluationConfig, vlm: VLM) -> list[Labelled]:
    examples = [
        example
        for name in NAMES
        if role(name) != "attack"
        for example in load_suite(name, "fit", limit=HARMLESS, seed=job.run.seed)
    ]
    answers = vlm.answers(examples, max_new_tokens=job.answer_length, batch_size=job.batch)
    return harmless_answers(
        [(example, answer.text) for example, answer in zip(examples, answers, strict=True)]
    )
