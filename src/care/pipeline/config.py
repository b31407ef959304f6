"""What a job works on: the model, its examples in three splits, and the judge.

With no files of the user's own, the small world's suites are asked of any model; its adversarial
pictures are made for the embedded model and left out for others. The user's own examples are split
by goal, so that no goal is both fitted on and tested. What a job does is in `pipeline`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from care.data.example import Example, Suite
from care.data.minimal_pairs import Pair
from care.data.small_world.suites import (
    BASELINE,
    FIT_LENGTHS,
    SELECTION_LENGTHS,
    TEST_LENGTH,
)
from care.defenses.repair.presets import Preset
from care.errors import DataError, UsageError
from care.evaluation.table import Table
from care.judges.rules import RulesJudge, rules_for
from care.models.thoughts import known_tags
from care.models.vlm import VLM
from care.runs.options import MANY, MAX_BATCH, MAX_SEED, require

Split = Literal["fit", "validation", "test"]


@dataclass(frozen=True)
class Job:
    """One main job; what `care repair` is asked for."""

    model: str | None = None
    """Name or folder of a model; None for the embedded one."""
    revision: str | None = None
    """Revision of the model on the Hub."""
    out: Path = Path("runs/repair")
    """Folder of the run."""
    seed: int = 0
    """Seed of everything that is drawn."""
    resume: bool = False
    """Go on with what is in the folder."""
    dtype: str = "auto"
    """Floating-point type of the model."""
    device_map: str | None = None
    """As in transformers."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings."""
    preset: Preset = "corrected"
    """How the repair is fitted."""
    attacks: Path | None = None
    """The user's own attacks (JSONL); None for the small world's."""
    benign: Path | None = None
    """The user's own benign requests (JSONL)."""
    batch_size: int | None = None
    """Examples that are answered together; None: 64 of the embedded model's, 16 of another's."""
    max_new_tokens: int = 24
    """Length of an answer in tokens."""
    test_length: int = TEST_LENGTH
    """Test examples of one suite."""
    thoughts: tuple[str, ...] = ()
    """Further tags between which the model thinks before it answers, each OPEN…CLOSE."""

    def __post_init__(self) -> None:
        if (self.attacks is None) != (self.benign is None):
            raise UsageError("pass both --attacks and --benign, or neither")
        require(
            self,
            {"batch_size": 1, "max_new_tokens": 1, "test_length": 1, "seed": 0},
            {"batch_size": MAX_BATCH, "max_new_tokens": MAX_BATCH, "test_length": MANY,
             "seed": MAX_SEED},
        )  # fmt: skip

    @property
    def batch(self) -> int:
        """Examples that are answered together."""
        return self.batch_size or (64 if self.model is None else 16)

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, for the manifest."""
        facts = asdict(self)
        for place in ("out", "resume", *(() if self.thoughts else ("thoughts",))):
            facts.pop(place)
        return {k: str(v) if isinstance(v, Path) else v for k, v in facts.items()}


def load_model(job: Any) -> VLM:
    """The model of a job of any kind, by its `model`, `dtype`, `device_map`, `revision` and
    `trust_remote_code`; `thoughts` too where it has any."""
    if job.model is None:
        vlm = VLM.embedded(job.dtype)
    else:
        vlm = VLM.from_pretrained(
            job.model,
            dtype=job.dtype,
            device_map=job.device_map,
            revision=job.revision,
            trust_remote_code=job.trust_remote_code,
        )
    if more := getattr(job, "thoughts", ()):
        vlm.thought_tags = known_tags(more)
    return vlm


def make_judge(job: Job) -> RulesJudge:
    """The judge; for the embedded model with perplexity under its untouched text model."""
    return rules_for(job.model, job.dtype, job.thoughts)


def suites_of(job: Job, split: Split) -> list[Suite]:
    """The job's suites in one split, attacks first."""
    if job.attacks is None:
        return _small_world(job, split)
    return [part for suite in own_files(job) for part in _own(suite, split)]


def check_files(job: Job) -> None:
    """Read the user's own files, so that what is wrong with them shows before a model is loaded.

    Raises what `suites_of` does.
    """
    for suite in own_files(job):
        for split in get_args(Split):
            _own(suite, split)


def own_files(job: Job) -> list[Suite]:
    """The user's own attacks and benign requests, whole; none where the small world is asked."""
    from care.data.jsonl import read_suite

    if job.attacks is None or job.benign is None:
        return []
    return [read_suite(job.attacks, "attack"), read_suite(job.benign, "over_refusal")]


def _small_world(job: Job, split: Split) -> list[Suite]:
    from care.data.small_world import suites

    made = []
    for name in suites.NAMES:
        if job.model is not None and name in suites.PGD:
            continue
        if split == "test":
            length = job.test_length
        elif split == "validation":
            length = SELECTION_LENGTHS[suites.role(name)]
            length = min(length, length * job.test_length // TEST_LENGTH) or 1
        else:
            length = FIT_LENGTHS[name]
        made.append(suites.load(name, split, length))
    return made


def pairs_of(job: Job, n: int = 48) -> list[Pair]:
    """At most `n` pairs of each of two kinds from the small world, on goals to fit on.

    First pairs that differ in the picture: of the embedded model the same request beside an
    adversarial and a plain one, of others a malicious and a harmless goal in the picture. Then
    pairs that differ in the text: harmful and harmless twins. None for the user's own examples.
    """
    if job.attacks is not None:
        return []
    from care.data.small_world import minimal_pairs as twins
    from care.data.small_world import suites

    attack, benign, kind = (
        (suites.PGD[0], "beside-image", "adversarial pictures")
        if job.model is None
        else ("pictured-goal", "benign-pictured", "harmful pictures")
    )
    found = (suites.load(name, "fit", n) for name in (attack, benign))
    pictured = [Pair(one, other, kind) for one, other in zip(*found, strict=True)]
    return pictured + twins.load("fit", n)


def _own(suite: Suite, split: Split) -> list[Suite]:
    """The user's suite, one suite per name in the file, kept to one split by goal."""
    groups: dict[str, list[Example]] = {}
    for example in suite:
        if _split_of(example.goal or example.prompt) == split:
            groups.setdefault(example.suite or suite.name, []).append(example)
    if not groups:
        raise DataError(
            f"{suite.name} has no example for the {split} split: goals are split by their digest, "
            "so a handful is too few; add examples with other goals"
        )
    return [
        Suite(name=name, role=suite.role, examples=tuple(found), source=suite.source)
        for name, found in groups.items()
    ]


def _split_of(goal: str) -> Split:
    """Half of all goals to fit on, a fifth for validation, the rest for test; by digest."""
    share = int(hashlib.sha256(goal.strip().lower().encode()).hexdigest()[:8], 16) / 16**8
    return "fit" if share < 0.5 else "validation" if share < 0.7 else "test"


def split_examples(suites: Sequence[Suite], role: Callable[[Suite], bool]) -> list[Example]:
    """All examples of the suites for which `role` holds."""
    return [example for suite in suites if role(suite) for example in suite]


def mean_rates(table: Table, defense: str) -> dict[str, float]:
    """Mean ASR (without the baseline suite), utility, answered share and degenerate share."""
    rates: dict[str, list[float]] = {"attack": [], "utility": [], "over_refusal": []}
    broken = []
    for suite in table.suites:
        counts = table.outcomes(suite, defense)
        broken.append(counts["degenerate"] / max(1, sum(counts.values())))
        if suite != BASELINE:
            rates[table.role(suite)].append(table.rate(suite, defense).rate)
    means = {role: float(np.mean(found)) if found else 1.0 for role, found in rates.items()}
    return {
        "asr": means["attack"],
        "utility": means["utility"],
        "answered": means["over_refusal"],
        "degenerate": float(np.mean(broken)),
    }
