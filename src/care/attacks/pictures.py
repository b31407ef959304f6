"""Pictures as attacks in variants: several pictures for each request, the best of which counts.

Where a text is read that the model has said, a picture has to change *what* is said, and there is
no gradient that tells how. So pictures are made for many wishes, and each request is shown all of
them (`care.evaluation.tries` has the best of n):

| attack | pictures | made for |
|---|---|---|
| `registers` | one for each register, or for each and each request | openings (`registers`) |
| `missed` | a few | beginnings of harmful answers that monitors don't mind |
| `said` | one | the same, with the monitors' scores in the loss (`said`) |
| `pictured` | one for each request | the usual opening, on the picture that holds the goal |

Each is descended from several starts until its loss is flat. A repair with monitors decides by
what the bare model says, so its pictures are those of the bare model; `missed` and `said` ask its
monitors. The folder gets a picture for each, and `pictures.json`, written anew after each, from
which a search goes on.
"""

from __future__ import annotations

import hashlib
import io
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from care.attacks.adaptive import Through
from care.attacks.facts import ALL, PICTURES, MadePicture, PictureFacts
from care.attacks.job import TARGET, asked_of
from care.attacks.pgd import universal_image
from care.attacks.plateau import Plateau
from care.attacks.presets import PGDConfig
from care.attacks.registers import PLAIN, REGISTERS, opened
from care.attacks.words import Search, Stage, Variant, WordAttack
from care.data.digests import digest_of
from care.data.example import Example, Suite
from care.data.small_world.pictures import seeded
from care.data.small_world.suites import OPENING
from care.errors import UsageError
from care.runs.files import config_digest, to_json, write_whole
from care.runs.reading import read_json
from care.runs.settings import MANY, MAX_BATCH, require
from care.typed import from_tree, to_tree

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.vlm import VLM


@dataclass(frozen=True)
class Wish:
    """What one picture is made for."""

    variant: str
    """The variant that shows it."""
    examples: list[Example]
    """Requests."""
    targets: list[str]
    """How their answers shall begin."""
    start: Image.Image
    """Where the descent begins."""
    request: str = ALL
    """Id of the request it is for; `*` is for all."""


@dataclass(frozen=True)
class Pictures(WordAttack):
    """Settings and search that attacks with pictures in variants share."""

    stage: ClassVar[Stage] = "picture"
    through: ClassVar[bool] = True
    in_words: ClassVar[bool] = False

    kappa: int = 0
    """Radius in 8-bit levels; 0: unconstrained."""
    steps: int = 100
    """Most steps of an attempt; it ends when its loss is flat."""
    restarts: int = 3
    """Attempts for each picture, from other starts."""
    tokens: int = 8
    """How many of the first tokens of a wished answer count."""
    batch: int = 8
    """Requests of a step."""
    target: str = ""
    """How answers shall begin, with {goal}; none: the model's usual way."""

    def __post_init__(self) -> None:
        most = {"kappa": 255, "steps": MANY, "restarts": MANY, "tokens": MANY, "batch": MAX_BATCH}
        require(self, {"kappa": 0, "steps": 1, "restarts": 1, "tokens": 1, "batch": 1}, most)

    @property
    @abstractmethod
    def pictures(self) -> list[str]:
        """Names of its variants."""

    @property
    def tries(self) -> int:
        """Each request is shown each of the pictures that are made for it."""
        return len(self.pictures)

    @property
    def passes(self) -> int:
        """Once there, and back at twice the cost, for each request of a step."""
        return 3 * self.batch

    def descent(self, seed: int) -> PGDConfig:
        """Settings of the descent."""
        return PGDConfig(
            epsilon=self.kappa / 255 if self.kappa else None,
            steps=self.steps,
            step_size=(2 if self.kappa else 10) / 255,
            batch=self.batch,
            target_tokens=self.tokens,
            momentum=0.5,
            seed=seed,
            restarts=self.restarts,
        )

    def usual(self, of: Search) -> str:
        """How an answer shall begin that isn't in another register."""
        return self.target or (TARGET if of.model.name else OPENING)

    def wishes(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search
    ) -> Iterator[Wish]:
        """What pictures are made for, in an order that is always the same."""
        raise NotImplementedError

    def term(self, vlm: VLM, defense: Defense | None, wish: Wish) -> Any:
        """What is added to the loss, as `universal_image` takes it."""
        return None

    def search(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search, progress: Any = None
    ) -> None:
        """Make what isn't there yet. Raises UsageError for pictures of something else."""
        told = {
            "model": config_digest(dict(of.identity)),
            "defense": str(digest_of(defense)),
            "requests": config_digest({"ids": [e.digest() for e in self._asked(held_out, of)]}),
            "settings": config_digest({**asdict(self), "seed": of.seed, "dtype": of.model.dtype}),
        }
        done = _begun(of.folder, told, self.steps)
        if len(done.pictures) == self._many(held_out):
            return
        wishes = list(self.wishes(vlm, defense, held_out, of))
        for number, wish in enumerate(wishes):
            if number >= len(done.pictures):
                before = number * self.steps * self.restarts
                bar = None if progress is None else partial(progress, before)
                made = self._made(vlm, defense, wish, of, number, bar)
                done = replace(done, pictures=(*done.pictures, made))
                write_whole(of.folder / PICTURES, to_json(to_tree(done), indent=1) + "\n")

    def search_steps(self, held_out: Suite) -> int:
        """Most steps of all pictures on each defense."""
        return self._many(held_out) * self.steps * self.restarts

    def loss_in(self, folder: Path) -> float:
        """Mean loss of the pictures in a folder, under what they were made against."""
        losses = [made.loss for made in pictures_in(folder).pictures]
        return sum(losses) / len(losses)

    def found(self, folder: Path) -> list[Variant]:
        """The requests beside the pictures in a folder."""
        by_variant: dict[str, dict[str, Path]] = {}
        for made in pictures_in(folder).pictures:
            by_variant.setdefault(made.variant, {})[made.request] = folder / made.file
        return [Variant(name, partial(beside, files)) for name, files in by_variant.items()]

    def _asked(self, held_out: Suite, of: Search) -> list[Example]:
        """The requests that pictures are made for."""
        return list(held_out)

    def _many(self, held_out: Suite) -> int:
        """How many pictures are made."""
        return len(self.pictures) * len(held_out)

    def _made(
        self, vlm: VLM, defense: Defense | None, wish: Wish, of: Search, number: int, bar: Any
    ) -> MadePicture:
        result = universal_image(
            vlm,
            wish.examples,
            wish.targets,
            wish.start,
            self.descent(of.seed),
            through=None if defense is None else Through(defense),
            until=Plateau(),
            term=self.term(vlm, defense, wish),
            progress=bar,
            checkpoint=of.folder / f"state-{number}.safetensors",
        )
        png = io.BytesIO()
        result.image.save(png, "png", optimize=True)
        file = f"picture-{number}.png"
        write_whole(of.folder / file, png.getvalue())
        return MadePicture(
            variant=wish.variant,
            request=wish.request,
            file=file,
            sha256=hashlib.sha256(png.getvalue()).hexdigest(),
            loss=result.loss,
            losses=result.losses,
        )


@dataclass(frozen=True)
class Registers(Pictures):
    """A picture for the usual opening of answers, and one for each other register."""

    name: ClassVar[str] = "registers"
    source: ClassVar[str] = "this project; PGD: Madry et al. 2018"

    n: int = len(REGISTERS) + 1
    """How many of the registers, the usual one first."""
    optimised: int = 60
    """Requests that one picture is made for."""
    each: int = 0
    """1: a picture for each held-out request; 0: one for all."""
    requests: str = ""
    """Requests to make one picture for, JSON Lines; none: the small world's to fit on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = {"n": len(REGISTERS) + 1, "optimised": MANY, "each": 1}
        require(self, {"n": 1, "optimised": 1, "each": 0}, most)
        if self.each and self.requests:
            raise UsageError("With each=1 a picture is made for each held-out request itself.")

    @property
    def pictures(self) -> list[str]:
        """One for each register."""
        return [PLAIN, *REGISTERS][: self.n]

    def optimised_on(self, of: Search) -> list[Example]:
        """Requests that pictures are made for and that must not be held out."""
        return [] if self.each else asked_of(of, self.requests, self.optimised)

    def wishes(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search
    ) -> Iterator[Wish]:
        """Each register, for all requests or for one after the other."""
        start = unrelated_start(of.seed)
        examples = self._asked(held_out, of)
        for name in self.pictures:
            text = REGISTERS.get(name) or self.usual(of)
            targets = [opened(text, e.goal or e.prompt) for e in examples]
            if not self.each:
                yield Wish(name, examples, targets, start)
                continue
            for example, target in zip(examples, targets, strict=True):
                yield Wish(name, [example], [target], start, example.id)

    def _asked(self, held_out: Suite, of: Search) -> list[Example]:
        return list(held_out) if self.each else self.optimised_on(of)

    def _many(self, held_out: Suite) -> int:
        return len(self.pictures) * (len(held_out) if self.each else 1)


@dataclass(frozen=True)
class Pictured(Pictures):
    """Noise on the picture that holds a request's goal, for that request."""

    name: ClassVar[str] = "pictured"
    source: ClassVar[str] = "this project; PGD: Madry et al. 2018"
    held_out: ClassVar[str | None] = "pictured-goal"

    kappa: int = 32

    @property
    def pictures(self) -> list[str]:
        """One."""
        return [PLAIN]

    def wishes(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search
    ) -> Iterator[Wish]:
        """The usual opening, from each request's own picture."""
        for example in held_out:
            if not example.images:
                raise UsageError(
                    f"The request {example.id!r} has no picture for {self.name} to begin with; "
                    "name a suite of pictured goals with suite=NAME."
                )
            start = example.load_images()[0].convert("RGB")
            target = opened(self.usual(of), example.goal or example.prompt)
            yield Wish(PLAIN, [example], [target], start, example.id)


def pictures_in(folder: Path) -> PictureFacts:
    """The facts in a folder of pictures; DataError for what care doesn't write there."""
    todo = "delete it and resume to make them again"
    facts = read_json(folder / PICTURES, "pictures", otherwise=todo)
    return from_tree(PictureFacts, facts, strict=False, what=str(folder / PICTURES), todo=todo)


def beside(files: Mapping[str, Path], example: Example) -> Example:
    """The example with the picture that was made for it, or for all."""
    file = files.get(example.id, files.get(ALL))
    return example if file is None else replace(example, images=(file,))


def unrelated_start(seed: int) -> Image.Image:
    """The picture that descents begin with."""
    from care.data.small_world.scenes import unrelated

    return unrelated(seeded("attack", seed))


def _begun(folder: Path, told: dict[str, str], steps: int) -> PictureFacts:
    """What is finished in a folder; UsageError if it was made of something else."""
    if not (folder / PICTURES).exists():
        return PictureFacts(made_of=told, steps=steps)
    found = pictures_in(folder)
    differing = [key for key, value in told.items() if found.made_of.get(key) != value]
    if differing:
        raise UsageError(
            f"The pictures in {folder} were made of something else (another "
            f"{', '.join(differing)}); choose another folder, or delete this one and resume."
        )
    return found
