"""What `care evaluate` and `care judge` are asked for, and what a manifest stores of it.

Plain data, which the command line shows. The attacks that are part of it are read in
`asked_attacks`; what is done with it is in `job`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from care.attacks.joined import Joined
from care.errors import UsageError
from care.evaluation.asked_attacks import (
    AskedVariants,
    ImageAttack,
    attacks_in_variants,
    image_attacks,
)
from care.models.spec import ModelSpec, Precision
from care.models.thoughts import known_tags
from care.runs.settings import FILE, MANY, MAX_BATCH, Between, Said, check_bounds
from care.runs.shards import Shard
from care.runs.spec import RunSpec
from care.typed import from_tree

UNDEFENDED = "none"
"""Name of the bare model where a defense could stand, in rows and tables."""

RULES = "rules"
"""Name of the judge whose outcomes stand in rows.jsonl."""

MARGIN = 0.02
"""Loss of utility that is accepted, unless another is asked for."""

PARTS = ("edits only", "monitors only")
"""Names of the parts of a repair in tables."""

CONTROLS = ("random discriminant", "sees the picture")
"""Names of the controls of a repair's monitors in tables."""


@dataclass(frozen=True)
class JudgingSpec:
    """Who judges answers, and against what."""

    judges: Annotated[tuple[str, ...], Said("--judge")] = (RULES,)
    """NAME[,option=value]…, may be given repeatedly, the first makes the table; see `care list
    judges`."""
    labels: Annotated[Path | None, FILE] = None
    """Answers labelled by hand (.jsonl), to correct rates."""
    margin: float = MARGIN
    """Loss of utility that is accepted."""

    def __post_init__(self) -> None:
        if not 0.0 < self.margin < 1.0:
            raise UsageError(f"the margin must lie between 0 and 1, got {self.margin}")


def check_judges(judging: JudgingSpec) -> None:
    """UsageError where there is no judge, or two would have one name in tables."""
    from care.judges.registry import shown_name

    if not judging.judges:
        raise UsageError("an evaluation needs a judge; the offline one is called rules")
    shown = [shown_name(wanted) for wanted in judging.judges]
    if len(set(shown)) < len(shown):
        raise UsageError(
            f"two judges have one name in {', '.join(shown)}; give one another with as=NAME"
        )


def rules_alone(judging: JudgingSpec) -> bool:
    """Whether the rules are the one judge: others are given whole answers."""
    return judging.judges == (RULES,)


@dataclass(frozen=True, kw_only=True)
class RejudgeConfig:
    """Stored answers of a run, judged again."""

    path: Annotated[Path, Said("run")]
    """Folder of a finished evaluation."""
    judging: JudgingSpec = JudgingSpec(())
    """Who judges."""
    retry: bool = False
    """Ask again where a judge's call had failed."""
    thoughts: tuple[str, ...] = ()
    """Further tags between which the model thought before it answered, OPEN…CLOSE; none: those of
    the run. Repeatable."""
    out: Path | None = None
    """Folder for a copy that is judged; none: RUN itself."""

    def __post_init__(self) -> None:
        if not self.judging.judges:
            raise UsageError("care judge needs --judge NAME; `care list judges` lists them.")
        known_tags(self.thoughts)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation: models × defenses × suites, and who judges."""

    suites: Annotated[tuple[str, ...], Said("--suite", by_commas=True)] = ()
    """Attack and over-refusal suites, names or .jsonl files, by commas; repeatable."""
    utility: Annotated[tuple[str, ...], Said("--utility", by_commas=True)] = ()
    """Utility suites; repeatable; with neither: all of the small world."""
    repairs: Annotated[tuple[Path, ...], Said("--repair")] = ()
    """Folder of a repair, or of another saved defense, to compare with the bare model;
    repeatable."""
    adaptive: tuple[str, ...] = ()
    """Attack to make against the bare model and through every repair, NAME[,option=value]…, see
    `care list attacks`; all or all,quick: every kind; repeatable."""
    parts: bool = False
    """Beside the one repair, its edits alone and its monitors alone."""
    controls: bool = False
    """Beside the one repair, random monitors, and one that sees the picture."""
    judging: JudgingSpec = JudgingSpec()
    """Who judges."""
    run: RunSpec = RunSpec(Path("runs/evaluate"))
    """Where it goes."""
    fitted_on: Annotated[tuple[str, ...], Said("--fitted-on", by_commas=True)] = ()
    """Suites that the repairs were fitted on, by commas, to look for near leaks too; of the small
    world's the fit split is meant; repeatable."""
    allow_leaks: bool = False
    """Go on though goals fitted on are tested."""
    limit: Annotated[int | None, Between(1, MANY)] = None
    """Most examples of a suite."""
    max_new_tokens: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Length of an answer in tokens; none: 24 of the embedded model's, 512 of another's."""
    shard: str | None = None
    """Answer only the I-th of K parts of all batches, said as I/K, or auto under torchrun and
    SLURM; `care merge` puts the parts together."""
    model: ModelSpec = ModelSpec()
    """What answers."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_judges(self.judging)
        if self.shard is not None and any(isinstance(a.attack, Joined) for a in self.in_variants):
            raise UsageError(
                "the attack joined is chosen by the answers to all others: leave out --shard, or it"
            )
        defenses = [UNDEFENDED, *defense_names(self.repairs), *(PARTS if self.parts else ())]
        defenses += CONTROLS if self.controls else ()
        if len(set(defenses)) < len(defenses):
            raise UsageError(
                f"two defenses have one name in {', '.join(defenses)}, where {UNDEFENDED} is the "
                "bare model; name each repair once, or give its folder another name"
            )
        names = [attack.name for attack in (*self.attacks, *self.in_variants)]
        if len(set(names)) < len(names):
            raise UsageError(
                f"two attacks have one name in {', '.join(names)}; give one another with as=NAME"
            )

        attacks = [one.attack for one in self.in_variants]
        stages = {each.stage for each in attacks if not isinstance(each, Joined)} - {"draw"}
        stages |= {"picture"} if self.attacks else set()
        if any(isinstance(each, Joined) for each in attacks) and len(stages) < 2:
            raise UsageError(
                "joined puts together what other attacks change; ask for two of them that change "
                "different things, such as templates and openings"
            )

    @property
    def part(self) -> Shard | None:
        """The shard that is asked for."""
        return None if self.shard is None else Shard.of(self.shard)

    @property
    def attacks(self) -> list[ImageAttack]:
        """The image attacks; UsageError for one that can't be read."""
        return image_attacks(self.adaptive)

    @property
    def in_variants(self) -> list[AskedVariants]:
        """The attacks in variants; UsageError for one that can't be read."""
        return attacks_in_variants(self.adaptive)

    @property
    def defenses(self) -> dict[str, Path | None]:
        """The bare model and the repairs, by their names in tables."""
        named = zip(defense_names(self.repairs), self.repairs, strict=True)
        parts = part_paths(self.run.out) if self.parts else {}
        controls = control_paths(self.run.out) if self.controls else {}
        return {UNDEFENDED: None, **parts, **dict(named), **controls}

    @property
    def cuts_refusals(self) -> bool:
        """Whether an answer ends as soon as it refuses."""
        return rules_alone(self.judging)

    @property
    def batch(self) -> int:
        """Examples that are answered together."""
        return self.model.batch(self.run.batch_size)

    @property
    def answer_length(self) -> int:
        """Length of an answer in tokens."""
        return self.model.answer_length(self.max_new_tokens)

    def config(self) -> dict[str, Any]:
        """Everything that decides the answers, for the manifest."""
        return {
            **self.model.facts(),
            "suites": self.suites,
            "utility": self.utility,
            "repairs": [str(path) for path in self.repairs],
            **({"adaptive": self.adaptive} if self.adaptive else {}),
            **({"parts": True} if self.parts else {}),
            **({"controls": True} if self.controls else {}),
            "seed": self.run.seed,
            "limit": self.limit,
            "batch_size": self.batch,
            "max_new_tokens": self.answer_length,
            "cuts_refusals": self.cuts_refusals,
        }


@dataclass(frozen=True)
class ProbeSpec:
    """A few requests on which a defense is looked at, short of a whole evaluation."""

    suites: Annotated[tuple[str, ...], Said("--suite", by_commas=True)] = ()
    """Attack suites, names or .jsonl files, by commas; repeatable."""
    utility: Annotated[tuple[str, ...], Said("--utility", by_commas=True)] = ()
    """Harmless suites; repeatable; with neither: some of the small world."""
    limit: Annotated[int, Between(1, MANY)] = 12
    """Most examples of a suite."""
    max_new_tokens: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Length of an answer in tokens; none: 24 of the embedded model's, 512 of another's."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class StoredConfig:
    """The configuration of an evaluation or a main job, as far as it is read back."""

    model: str | None = None
    """Name of the model; none: the embedded one."""
    dtype: Precision = "auto"
    """Its precision."""
    thoughts: tuple[str, ...] = ()
    """Further tags between which it thinks."""
    seed: int = 0
    """Seed of everything random."""
    max_new_tokens: int | None = None
    """Length of an answer in tokens."""
    suites: tuple[str, ...] = ()
    """Attack and over-refusal suites of an evaluation."""
    utility: tuple[str, ...] = ()
    """Its utility suites."""
    repairs: tuple[str, ...] = ()
    """Folders of its repairs."""
    adaptive: tuple[str, ...] = ()
    """Its attacks, as they were asked for."""
    parts: bool = False
    """Whether the parts of its repair were asked too."""
    controls: bool = False
    """Whether the controls of its monitors were."""
    limit: int | None = None
    """Most examples of a suite."""
    cuts_refusals: bool = True
    """Whether answers end where they refuse."""
    attacks: str | None = None
    """A main job's suites of attacks, by commas."""
    benign: str | None = None
    """Its suites of benign requests, by commas."""
    test: tuple[str, ...] = ()
    """Its suites that are tested alone."""
    pgd: tuple[str, ...] = ()
    """Radii of the pictures it makes."""
    leaks: Literal["refuse", "leave-out"] = "refuse"
    """What it does with goals on both sides."""
    quick: str | None = None
    """On which part of the examples it is, if not on all."""
    test_length: int | None = None
    """Test examples of each suite of the small world; none of an evaluation."""

    @property
    def named(self) -> tuple[str, ...]:
        """Suites that it asked for by name or file."""
        split = [name for part in (self.attacks, self.benign) if part for name in part.split(",")]
        return (*split, *self.suites, *self.test, *self.utility)


def read_config(manifest: Mapping[str, Any]) -> StoredConfig:
    """The configuration that a run's manifest states; DataError where it can't be used."""
    tree, what = manifest["config"], "The manifest of the run"
    return from_tree(StoredConfig, tree, "config", strict=False, what=what)


def stored_defenses(config: StoredConfig) -> list[str]:
    """Names of the bare model and the defenses of a run, in the order in which they are asked."""
    parts, controls = PARTS if config.parts else (), CONTROLS if config.controls else ()
    given = defense_names([Path(path) for path in config.repairs])
    return [UNDEFENDED, *parts, *given, *controls]


def part_paths(out: Path) -> dict[str, Path]:
    """Where the parts of a repair lie in a run's folder, by their names."""
    return {name: out / "parts" / name.partition(" ")[0] for name in PARTS}


def control_paths(out: Path) -> dict[str, Path]:
    """Where the controls of its monitors lie, by their names."""
    return {name: out / "controls" / name.partition(" ")[0] for name in CONTROLS}


def defense_names(repairs: Sequence[Path]) -> list[str]:
    """A name for each folder in tables: its last part, or all of it where that isn't enough."""
    short = [path.name or str(path) for path in repairs]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, repairs, strict=True)
    ]
