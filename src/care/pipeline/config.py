"""What the jobs are asked for: `care repair`, `diagnose`, `fit`, `ablate`, `compare`, `verify`.

Plain data, which the command line shows and a manifest stores. What a job works on is in `splits`,
what it does in `workflow`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from care.defenses.export_facts import Format, Part
from care.errors import UsageError
from care.evaluation.config import (
    JudgingSpec,
    ProbeSpec,
    StoredConfig,
    check_judges,
    rules_alone,
)
from care.models.spec import ModelSpec
from care.pipeline.given_settings import read_settings
from care.runs.settings import FILE, MANY, MAX_BATCH, MAX_SEED, Between, Said, check_bounds
from care.runs.shards import Shard
from care.runs.spec import RunSpec

Preset = Literal["paper", "official", "corrected"]
Leaking = Literal["refuse", "leave-out"]

UNCONSTRAINED = "unconstrained"
"""The radius of a picture that may be any."""

SHORT = 24
"""Tokens of an answer that the rules alone judge, who tell by its beginning."""

Split = Literal["fit", "validation", "test"]

QUICK: Mapping[Split, int] = {"fit": 4, "validation": 4, "test": 4}
"""One in so many examples is asked in a quick job."""
QUICKLY = "a quarter of the examples"
"""The same in words, for what a quick job writes."""

FIRST_LOOK: Mapping[Split, int] = {"fit": 6, "validation": 8, "test": 16}
"""One in so many is asked in a quick comparison; of fewer to fit on no rank of 64 is solved."""
FIRST_LOOKED = "a sixth of the examples to fit on, an eighth to choose by, a sixteenth to test"
"""The same in words."""


@dataclass(frozen=True, kw_only=True)
class RepairJob:
    """One main job, or a part of it."""

    run: RunSpec = RunSpec(Path("runs/repair"))
    """Where it goes."""
    attacks: Annotated[tuple[str, ...], Said("--attacks", by_commas=True)] = ()
    """Attacks to fit on, suites by name or .jsonl files, by commas; none: the small world's;
    repeatable."""
    benign: Annotated[tuple[str, ...], Said("--benign", by_commas=True)] = ()
    """Benign requests to fit on, in the same way."""
    test: Annotated[tuple[str, ...], Said("--test", by_commas=True)] = ()
    """Further attack and over-refusal suites, which are tested whole, in the same way."""
    utility: Annotated[tuple[str, ...], Said("--utility", by_commas=True)] = ()
    """Utility suites to choose by and to test, never fitted on, in the same way."""
    pgd: Annotated[tuple[str, ...], Said("--pgd", by_commas=True)] = ()
    """Radii κ in 8-bit levels, or unconstrained, of pictures to make against the model, by commas;
    repeatable."""
    leaks: Leaking = "refuse"
    """What is done where goals of --test are also fitted on or chosen by: the job is refused, or
    they are left out there."""
    limit: Annotated[int | None, Between(1, MANY)] = None
    """Most examples of each named suite."""
    preset: Preset = "corrected"
    """How the repair is fitted."""
    test_length: Annotated[int, Between(1, MANY)] = 60  # as long as the small world's suites
    """Test examples of each suite of the small world."""
    quick: bool = False
    """The same on a quarter of the examples, for a first look."""
    tune: bool = False
    """Search the preset's settings on validation, as `care compare` does for every defense."""
    max_new_tokens: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Length of an answer in tokens; none: 24, and where others than the rules judge answers of
    another model than the embedded one, 512."""
    judging: JudgingSpec = JudgingSpec()
    """Who judges the answers to the test."""
    shard: str | None = None
    """Answer only the I-th of K parts of the requests to fit on, said as I/K, or auto under
    torchrun and SLURM; `care merge` puts the parts together, and --resume goes on from there."""
    model: ModelSpec = ModelSpec()
    """What is repaired."""

    def __post_init__(self) -> None:
        for name in (*NAMED, "pgd"):
            object.__setattr__(self, name, _names(getattr(self, name)))
        if bool(self.attacks) != bool(self.benign):
            raise UsageError("pass both --attacks and --benign, or neither")
        for radius in self.pgd:
            levels = int(radius) if radius.isascii() and radius.isdigit() else 0
            if radius != UNCONSTRAINED and not 1 <= levels <= 255:
                raise UsageError(
                    f"--pgd is {radius!r:.40}; pass radii from 1 to 255, or {UNCONSTRAINED}."
                )
        check_judges(self.judging)
        check_bounds(self)

    @property
    def part(self) -> Shard | None:
        """The shard that is asked for."""
        return None if self.shard is None else Shard.of(self.shard)

    def one_in(self, split: Split) -> int:
        """One in so many examples of that split is asked."""
        return QUICK[split] if self.quick else 1

    @property
    def quickly(self) -> str:
        """What of the examples a quick one asks."""
        return QUICKLY

    @property
    def batch(self) -> int:
        """Examples that are answered together."""
        return self.model.batch(self.run.batch_size)

    @property
    def cuts_refusals(self) -> bool:
        """Whether an answer to the test ends as soon as it refuses."""
        return rules_alone(self.judging)

    @property
    def answer_length(self) -> int:
        """Length of an answer in tokens."""
        short = SHORT if self.cuts_refusals else None
        return self.max_new_tokens or short or self.model.answer_length(None)

    @property
    def names_suites(self) -> bool:
        """Whether it names suites, or makes some, and not the small world alone is asked."""
        return any(getattr(self, name) for name in (*NAMED, "pgd"))

    @property
    def by_file(self) -> bool:
        """Whether all that is asked of is one file of attacks and one of benign requests."""
        from care.data.jsonl import ENDING

        files = (*self.attacks, *self.benign)
        return len(files) == 2 and all(name.endswith(ENDING) for name in files)

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, for the manifest."""
        quick = {"quick": self.quickly} if self.quick else {}
        tune = {"tune": True} if self.tune else {}
        named: dict[str, Any] = {name: ",".join(getattr(self, name)) or None for name in NAMED[:2]}
        # Jobs of versions that knew no such options go on: they say nothing of them.
        named |= {name: found for name in (*NAMED[2:], "pgd") if (found := getattr(self, name))}
        if self.leaks != "refuse":
            named["leaks"] = self.leaks
        if self.limit is not None:
            named["limit"] = self.limit
        if not self.cuts_refusals:
            named["cuts_refusals"] = False
        return {
            **self.model.facts(),
            "seed": self.run.seed,
            "preset": self.preset,
            **named,
            "batch_size": self.run.batch_size,
            "max_new_tokens": self.answer_length,
            "test_length": self.test_length,
            **quick,
            **tune,
        }


def job_of(config: StoredConfig) -> RepairJob:
    """The job that a run's manifest states, as far as it decides which examples were asked."""
    attacks, benign = (
        tuple(part.split(",")) if part else () for part in (config.attacks, config.benign)
    )
    kind = CompareJob if config.quick == FIRST_LOOKED else RepairJob
    return kind(
        run=RunSpec(Path(), seed=config.seed),
        attacks=attacks,
        benign=benign,
        test=config.test,
        utility=config.utility,
        pgd=config.pgd,
        leaks=config.leaks,
        limit=config.limit,
        test_length=config.test_length or 1,
        quick=config.quick is not None,
        model=ModelSpec(config.model),
    )


NAMED = ("attacks", "benign", "test", "utility")
"""The fields that name suites."""


def _names(given: object) -> tuple[str, ...]:
    """Names of suites; one alone, or a path, is one too."""
    if given is None or isinstance(given, str | Path):
        return () if given is None else (str(given),)
    return tuple(map(str, cast("tuple[object, ...]", given)))


@dataclass(frozen=True, kw_only=True)
class UpdateJob:
    """New attacks that are folded into a saved repair."""

    repair: Annotated[Path, Said("repair")]
    """Folder of a repair that remembers what it was fitted on."""
    attacks: Annotated[Path, FILE]
    """New attacks, JSON Lines; half of their goals are folded in, the others asked."""
    benign: Annotated[Path | None, FILE] = None
    """Benign requests to fold in and to ask in the same way, JSON Lines."""
    curve: str = ""
    """Numbers of attacks that worked, by commas (1,4,16,64): the repair is also asked with so many
    of them."""
    run: RunSpec = RunSpec(Path("runs/update"))
    """Where it goes."""
    max_new_tokens: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Length of an answer in tokens; by default that which the repair was fitted with."""
    model: ModelSpec = ModelSpec()
    """What the repair is for."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.curve and not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", self.curve):
            raise UsageError(
                f"--curve takes numbers of attacks by commas, as 1,4,16,64, got {self.curve!r:.40}."
            )

    @property
    def counts(self) -> list[int]:
        """The numbers of the curve, smallest first."""
        return sorted({int(count) for count in self.curve.split(",") if count})

    @property
    def batch(self) -> int:
        """Examples that are answered together."""
        return self.model.batch(self.run.batch_size)

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers, for the manifest."""
        return {
            **self.model.facts(),
            "seed": self.run.seed,
            "repairs": [str(self.repair)],
            "attacks": str(self.attacks),
            "benign": None if self.benign is None else str(self.benign),
            "curve": self.counts,
            "batch_size": self.run.batch_size,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class CompareJob(RepairJob):
    """One comparison of defenses."""

    run: RunSpec = RunSpec(Path("runs/compare"))
    """Where it goes."""
    quick: bool = False
    """Few rivals, a sixth of the examples or less, two settings and one fit, for a first look."""
    defenses: Annotated[tuple[str, ...], Said("--defense")] = ()
    """A rival to compare, see `care list defenses`, or all; none: all there are, or seven of a
    quick one; repeatable."""
    seeds: Annotated[int | None, Between(1, 100)] = None
    """Fits of every row, each on another part of the material; none: 3, or 1 of a quick one."""
    fitted_on: Annotated[int | None, Between(8, MANY)] = None
    """Most requests of each class that every row is fitted on; none: 240, or 100 of a quick one."""
    settings: Annotated[Path | None, FILE] = None
    """Settings to take in place of a search: JSON {row: {option: value}}, or the table.json of a
    finished comparison; none: every row is searched."""
    adaptive: tuple[str, ...] = ()
    """Attack to make against every row, NAME[,option=value]…, see `care list attacks`; repeatable.
    """
    studies: Annotated[tuple[str, ...], Said("--study")] = ()
    """What to study besides of CARE and the best rivals: families (attacks that nothing was fitted
    on), sizes (fitted on few requests to many) or strengths; repeatable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune:
            raise UsageError("a comparison tunes every defense as it is: leave out tune=True")

    def one_in(self, split: Split) -> int:
        """See `RepairJob`."""
        return FIRST_LOOK[split] if self.quick else 1

    @property
    def quickly(self) -> str:
        """See `RepairJob`."""
        return FIRST_LOOKED

    @property
    def fits(self) -> int:
        """Fits of every row."""
        return self.seeds or (1 if self.quick else 3)

    @property
    def most(self) -> int:
        """Most requests of each class to fit on."""
        return self.fitted_on or (100 if self.quick else 240)

    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers of a row, for the manifest.

        Which rows, fits, attacks and studies are asked for decides none, so that a comparison can
        go on with more of them.
        """
        given = {} if self.settings is None else {"settings": read_settings(self.settings)}
        return super().config() | {"fitted_on": self.most} | given

    def asked(self) -> dict[str, Any]:
        """Which rows, fits, attacks and studies are asked for."""
        return {
            "defenses": self.defenses,
            "fits": self.fits,
            "adaptive": self.adaptive,
            "studies": self.studies,
        }


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """One look at whether a repair works on a model."""

    model: ModelSpec = ModelSpec()
    """The model that it is put on."""
    repair: Annotated[Path, Said("repair")]
    """Folder of a repair, or of another saved defense."""
    probe: ProbeSpec = ProbeSpec()
    """What it is asked."""
    max_asr: Annotated[float | None, Between(0, 1)] = None
    """Fail above this mean ASR on the probe; none: if it doesn't fall."""
    max_lost: Annotated[float, Between(0, 1)] = 0.1
    """Fail if the rate of harmless suites falls by more."""
    max_cost: Annotated[float | None, Between(0, MANY)] = None
    """Fail if a token takes longer by more than this share; none: it is told."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of what is drawn."""
    out: Path = Path("runs/verify")
    """Folder of the page."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """One repair, written as weights."""

    repair: Path
    """Folder of the repair."""
    format: Format
    """A whole checkpoint, or an adapter."""
    model: ModelSpec = ModelSpec()
    """The model that it was fitted on."""
    drop: tuple[Part, ...] = ()
    """What weights can't hold and is left out."""
    probe: ProbeSpec = ProbeSpec()
    """On what the loss of that is measured."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of what is drawn."""
    out: Path = Path("runs/export")
    """Folder of what is written."""

    def __post_init__(self) -> None:
        check_bounds(self)
