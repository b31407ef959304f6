"""Attacks in variants, mostly in words: from held-out requests to the same ones, asked otherwise.

An attack has *variants*, each a change of one request (another template, an opening of the answer,
a suffix), and asks every request in each of them. It wins a goal by any variant that works, so its
figure is that of the best of n tries (`care.evaluation.tries`), beside the mean of one. Ids get the
variant's name appended, after `MARK`.

    FixedAttack       variants known beforehand: templates, openings, turns, draws
    SearchedAttack    variants searched on each defense: suffixes, pictures

A change is a function of an example, so variants of several attacks can be put one upon the other
(`composed`), in the order of `STAGES`: what writes the request anew comes before what is added to
it; `joined` is the attack that does. Here is what attacks share; `variant_attacks` lists them. Not
here: answering and judging.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from care.errors import UsageError
from care.models.spec import ModelSpec
from care.runs.shards import ShardTurns

if TYPE_CHECKING:
    from care.data.example import Example, Suite
    from care.defenses.base import Defense
    from care.defenses.monitors.monitor import Monitor
    from care.models.vlm import VLM

Stage = Literal["template", "suffix", "turns", "opening", "picture", "draw"]
"""What a change is of, in the order in which changes are put one upon the other."""

STAGES: tuple[Stage, ...] = get_args(Stage)

MARK = "~"
"""Between the id of a request and the name of the variant in which it is asked."""


@dataclass(frozen=True)
class Variant:
    """One way to ask any request."""

    name: str
    """Short and unique within its attack; ends the ids of its examples."""

    change: Callable[[Example], Example]
    """From the plain request to the one that is asked; id and suite are set by the attack."""


@dataclass(frozen=True)
class Search:
    """Where an attack that searches its variants does so."""

    folder: Path
    """What is found goes there, and checkpoints."""
    model: ModelSpec = ModelSpec()
    """The model that is attacked."""
    seed: int = 0
    """Seed of everything random."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What `care.models.identity` says of the model."""
    max_new_tokens: int | None = None
    """Length of the answers that are asked for; none: the model's usual one."""
    turns: ShardTurns | None = None
    """Deals out descents and searches where several processes make them: then only this one's are
    made, as far as their checkpoints."""

    @property
    def answer_length(self) -> int:
        """Length of an answer in tokens."""
        return self.model.answer_length(self.max_new_tokens)


@dataclass(frozen=True)
class VariantAttack(ABC):
    """An attack in variants with its options, which are the fields of its class."""

    name: ClassVar[str]
    """What it is called where attacks are named."""
    source: ClassVar[str]
    """Where it comes from."""
    stage: ClassVar[Stage]
    """What its variants change."""
    held_out: ClassVar[str | None] = None
    """The suite of the small world that it asks where none is named; None: requests in words."""
    in_words: ClassVar[bool] = True
    """Whether it changes words of the request; else pictures, or how the answer begins."""

    @property
    def draws(self) -> float:
        """Temperature of its answers; 0 is greedy."""
        return 0.0

    @property
    @abstractmethod
    def tries(self) -> int:
        """How often it asks each request."""

    def shown(self, held_out: Suite) -> Suite:
        """Those of the held-out requests that it asks."""
        return held_out


@dataclass(frozen=True)
class FixedAttack(VariantAttack):
    """An attack whose variants are known beforehand, and the same for every defense."""

    @property
    def tries(self) -> int:
        """Each request is asked in all variants."""
        return len(self.variants())

    @abstractmethod
    def variants(self) -> list[Variant]:
        """Its variants."""


@dataclass(frozen=True)
class SearchedAttack(VariantAttack):
    """An attack whose variants are searched on each defense, and shown to all of them."""

    steps: int
    """Steps of a search at most."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Passes of one request, there or back, that a step of its search takes."""

    @property
    def asks(self) -> int:
        """Answers that its searches ask for before they begin, the same for every defense."""
        return 0

    def sees(self, defense: Defense | None) -> str | None:
        """Digest of what its search sees of a defense: of the same it finds the same. None is the
        bare model: with monitors it is what decides, until something is said.
        """
        if defense is None:
            return None
        from care.attacks.watched import digest_of_monitors
        from care.data.digests import digest_of

        if not defense.revises:
            return digest_of(defense) or defense.name
        return digest_of_monitors(self.heeds(defense))

    @abstractmethod
    def heeds(self, defense: Defense) -> list[Monitor]:
        """The monitors of a defense that its search goes by."""

    @abstractmethod
    def optimised_on(self, of: Search) -> list[Example]:
        """Requests that a search optimises on, which must not be held out."""

    @abstractmethod
    def search(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search, progress: Any = None
    ) -> None:
        """Search variants on a defense, None for the bare model, and write them into a folder.

        `progress` gets steps done before, steps done since, and the loss.
        """

    @abstractmethod
    def search_steps(self, held_out: Suite) -> int:
        """How many steps its searches take on each defense."""

    @abstractmethod
    def loss_in(self, folder: Path) -> float:
        """The loss that a search has come to, in a folder."""

    @abstractmethod
    def found(self, folder: Path) -> list[Variant]:
        """The variants that a search has written into a folder."""


def asked(attack: VariantAttack, requests: Suite, name: str, variants: Sequence[Variant]) -> Suite:
    """Every request in every variant, as an attack suite called `name`; goals stay what they are.

    Raises UsageError for a request whose id holds `MARK` already.
    """
    examples: list[Example] = []
    for request in requests:
        if MARK in request.id:
            raise UsageError(
                f"The request {request.id!r} is a variant of an attack already ({MARK!r} in its "
                f"id); pass plain requests to {attack.name}."
            )
        goal = request.goal or request.prompt
        for variant in variants:
            changed = variant.change(request)
            told = {"id": f"{request.id}{MARK}{variant.name}", "suite": name, "goal": goal}
            examples.append(replace(changed, **told))
    return replace(requests, name=name, role="attack", examples=tuple(examples))


def request_of(example_id: str) -> str:
    """Id of the plain request of which an example is a variant."""
    return example_id.partition(MARK)[0]


def variant_of(example_id: str) -> str:
    """Name of the variant in which a request is asked."""
    return example_id.partition(MARK)[2]


def composed(changes: Sequence[tuple[Stage, Variant]]) -> Variant:
    """Variants of several attacks as one, in the order of `STAGES`.

    Raises UsageError for two of one stage, of which the later would undo the earlier.
    """
    stages = [stage for stage, _ in changes]
    if twice := next((stage for stage in stages if stages.count(stage) > 1), None):
        raise UsageError(
            f"Two variants change the {twice}; put together at most one of each stage."
        )
    ordered = [variant for _, variant in sorted(changes, key=lambda pair: STAGES.index(pair[0]))]

    def change(example: Example) -> Example:
        for variant in ordered:
            example = variant.change(example)
        return example

    return Variant("+".join(variant.name for variant in ordered) or "plain", change)
