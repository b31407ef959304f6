"""Suffixes as an attack of an evaluation: searched on each defense, appended to every request.

One suffix is searched for requests that nothing is measured with (the small world's to fit on, or a
file), and appended to all held-out ones; or, with `each=1`, one for each held-out request, as
somebody would who wants that very answer. The search goes through the defense's edits, or past its
monitors (`suffix`). Its folder gets `suffixes.json`, which says by digests what they were made of,
and checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from care.attacks.config import AttackConfig
from care.attacks.facts import ALL, SUFFIXES, SuffixFacts, trace_of
from care.attacks.variants import Search, SearchedAttack, Stage, Variant
from care.data.example import Example, Suite
from care.data.small_world.suites import OPENING
from care.errors import UsageError
from care.runs.files import config_digest, to_json, write_whole
from care.runs.reading import read_json
from care.runs.settings import MANY, require
from care.runs.spec import RunSpec
from care.typed import from_tree, to_tree

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.defenses.monitors.monitor import Monitor
    from care.models.vlm import VLM


@dataclass(frozen=True)
class SuffixConfig:
    """How a suffix is searched."""

    steps: int = 40
    """Exchanges of a token; 500 in the paper."""
    width: int = 32
    """Candidates of a step; 512 in the paper."""
    topk: int = 64
    """Exchanges considered at each place; 256 in the paper."""
    length: int = 12
    """Tokens of the suffix; 20 in the paper."""
    rows: int = 64
    """Requests with suffixes that are read at once."""
    seed: int = 0
    """Seed of the candidates."""

    def __post_init__(self) -> None:
        require(self, {"steps": 1, "width": 1, "topk": 1, "length": 1, "rows": 1, "seed": 0}, MANY)


@dataclass(frozen=True)
class GCG(SearchedAttack):
    """A suffix that makes answers begin as wished, searched through each defense."""

    name: ClassVar[str] = "gcg"
    source: ClassVar[str] = "Zou et al. 2023"
    stage: ClassVar[Stage] = "suffix"

    steps: int = SuffixConfig.steps
    """Exchanges of a token."""
    width: int = SuffixConfig.width
    """Candidates of a step."""
    topk: int = SuffixConfig.topk
    """Exchanges considered at each place."""
    length: int = SuffixConfig.length
    """Tokens of the suffix."""
    n: int = 8
    """Requests that one suffix is searched for."""
    each: int = 0
    """1: a suffix for each held-out request; 0: one for all."""
    target: str = ""
    """How answers shall begin, with {goal}; none: the model's usual way."""
    requests: str = ""
    """Requests to search one suffix for, JSON Lines; none: the small world's to fit on."""

    def __post_init__(self) -> None:
        require(self, {"n": 1, "each": 0}, {"n": MANY, "each": 1})
        if self.each and self.requests:
            raise UsageError("With each=1 a suffix is searched for each held-out request itself.")
        self.suffix(0)

    @property
    def tries(self) -> int:
        """Each request is asked once, with its suffix."""
        return 1

    @property
    def passes(self) -> int:
        """A gradient, and each candidate there, for each request of a step."""
        return (1 if self.each else self.n) * (self.width + 3)

    def heeds(self, defense: Defense) -> list[Monitor]:
        """Those that see the request, which have a say in the search."""
        from care.attacks.watched import of_texts

        return of_texts(defense)

    def suffix(self, seed: int) -> SuffixConfig:
        """Settings of the search."""
        return SuffixConfig(self.steps, self.width, self.topk, self.length, seed=seed)

    def optimised_on(self, of: Search) -> list[Example]:
        """Requests that the suffix is searched for and that must not be held out."""
        return [] if self.each else self._asked(of, None)[0]

    def search(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search, progress: Any = None
    ) -> None:
        """Search what isn't there yet. Raises UsageError for suffixes of something else."""
        from care.attacks.suffix import search_suffix

        examples, targets = self._asked(of, held_out)
        told = {
            "model": config_digest(dict(of.identity)),
            "defense": str(self.sees(defense)),
            "requests": config_digest({"ids": [e.digest() for e in examples], "y": targets}),
            "settings": config_digest({**asdict(self), "seed": of.seed, "dtype": of.model.dtype}),
        }
        groups = (
            [[place] for place in range(len(examples))] if self.each else [[*range(len(examples))]]
        )
        if (of.folder / SUFFIXES).exists():
            if of.turns is not None:
                of.turns.next(len(groups))
            return _check_made_of(of.folder, told)
        suffixes: dict[str, str] = {}
        losses: list[float] = []
        for number, group in enumerate(groups):
            if of.turns is not None and not of.turns.next(1):
                continue
            found = search_suffix(
                vlm,
                [examples[place] for place in group],
                [targets[place] for place in group],
                self.suffix(of.seed),
                defense=defense,
                progress=None if progress is None else partial(progress, number * self.steps),
                checkpoint=of.folder / trace_of(number),
            )
            suffixes[examples[group[0]].id if self.each else ALL] = found.text
            losses.append(found.loss)
        if of.turns is not None:
            return None  # others search the rest
        mean = sum(losses) / len(losses)
        facts = SuffixFacts(made_of=told, steps=self.steps, loss=mean, suffixes=suffixes)
        write_whole(of.folder / SUFFIXES, to_json(to_tree(facts), indent=1) + "\n")
        return None

    def search_steps(self, held_out: Suite) -> int:
        """Steps of all suffixes on each defense."""
        return self.steps * (len(held_out) if self.each else 1)

    def loss_in(self, folder: Path) -> float:
        """Mean loss of the suffixes in a folder, under the defense they were searched on."""
        return suffixes_in(folder).loss

    def found(self, folder: Path) -> list[Variant]:
        """The requests with the suffixes in a folder."""
        return [Variant("g", partial(_appended, suffixes_in(folder).suffixes))]

    def _asked(self, of: Search, held_out: Suite | None) -> tuple[list[Example], list[str]]:
        from care.attacks.job import TARGET, requests_of

        if self.each and held_out is not None:
            text = self.target or (TARGET if of.model.name else OPENING)
            goals = [example.goal or example.prompt for example in held_out]
            return list(held_out), [text.replace("{goal}", goal) for goal in goals]
        config = AttackConfig(
            run=RunSpec(of.folder, seed=of.seed),
            requests=Path(self.requests) if self.requests else None,
            target=self.target or None,
            model=of.model,
        )
        examples, targets = requests_of(config)
        n = min(self.n, len(examples))
        places = [place * len(examples) // n for place in range(n)]
        return [examples[place] for place in places], [targets[place] for place in places]


def suffixes_in(folder: Path) -> SuffixFacts:
    """The facts in a folder of suffixes; DataError for what care doesn't write there."""
    todo = "delete it and resume to search again"
    facts = read_json(folder / SUFFIXES, "suffixes", otherwise=todo)
    return from_tree(SuffixFacts, facts, strict=False, what=str(folder / SUFFIXES), todo=todo)


def _appended(suffixes: Mapping[str, str], example: Example) -> Example:
    suffix = suffixes[example.id] if example.id in suffixes else suffixes[ALL]
    return replace(example, prompt=example.prompt + suffix)


def _check_made_of(folder: Path, told: Mapping[str, str]) -> None:
    kept = suffixes_in(folder).made_of
    differing = [key for key, value in told.items() if kept.get(key) != value]
    if differing:
        raise UsageError(
            f"The suffixes in {folder} were made of something else (another "
            f"{', '.join(differing)}); choose another folder, or delete this one and resume."
        )
