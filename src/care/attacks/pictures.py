"""Pictures as attacks in variants: several pictures for each request, the best of which counts.

Where a text is read that the model has said, a picture has to change *what* is said, and there is
no gradient that tells how. So pictures are made for many wishes, and each request is shown all of
them (`care.evaluation.tries` has the best of n):

| attack | variants | made for |
|---|---|---|
| `registers` | one for each register | openings (`registers`) |
| `missed` | a few | beginnings of harmful answers that monitors don't mind |
| `said` | one | the same, with the monitors' scores in the loss (`said`) |
| `pictured` | one | the usual opening, on the picture that holds a request's goal |

A variant has one picture, made for requests that nothing is measured with, or, with `each=1`, one
for each held-out request, from the request's own picture if it has one: so pictures that hold a
goal are attacked. Each is descended from several starts until its loss is flat. A repair with
monitors decides by what the bare model says, so its pictures are those of the bare model; `missed`
and `said` ask its monitors. The folder gets a picture for each, and `pictures.json`, written anew
after each, from which a search goes on.
"""

from __future__ import annotations

import hashlib
import io
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from care.attacks.adaptive import Through
from care.attacks.facts import ALL, PICTURES, MadePicture, PictureFacts
from care.attacks.job import TARGET, asked_of
from care.attacks.pgd import descend_attempts, universal_image
from care.attacks.plateau import Plateau
from care.attacks.presets import PGDConfig
from care.attacks.registers import opened
from care.attacks.variants import Search, SearchedAttack, Stage, Variant
from care.attacks.watched import of_pictures
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
    from care.defenses.monitors.monitor import Monitor
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
class Pictures(SearchedAttack):
    """Settings and search that attacks with pictures in variants share."""

    stage: ClassVar[Stage] = "picture"
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
    optimised: int = 60
    """Requests that nothing is measured with, which wishes are made from."""
    requests: str = ""
    """Those requests, JSON Lines; none: the small world's to fit on."""
    each: int = 0
    """1: a picture for each held-out request; 0: one for all."""
    limit: int = 0
    """Most held-out requests that are attacked; 0: all."""

    def __post_init__(self) -> None:
        least = {"kappa": 0, "steps": 1, "restarts": 1, "tokens": 1, "batch": 1}
        least |= {"optimised": 1, "each": 0, "limit": 0}
        most = {"kappa": 255, "batch": MAX_BATCH, "each": 1}
        require(self, least, dict.fromkeys(least, MANY) | most)

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
        return 3 * (1 if self.each else min(self.batch, self.optimised))

    def shown(self, held_out: Suite) -> Suite:
        """The first of the held-out requests."""
        return replace(held_out, examples=tuple(held_out)[: self.limit or None])

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

    def heeds(self, defense: Defense) -> list[Monitor]:
        """Those that see the picture."""
        return of_pictures(defense)

    def usual(self, of: Search) -> str:
        """How an answer shall begin that isn't in another register."""
        return self.target or (TARGET if of.model.name else OPENING)

    def optimised_on(self, of: Search) -> list[Example]:
        """Requests that wishes are made from, which must not be held out."""
        return asked_of(of, self.requests, self.optimised)

    @abstractmethod
    def worded(self, vlm: VLM, defense: Defense | None, of: Search) -> list[str]:
        """How any answer shall begin, with {goal}, for each variant."""

    def targets(
        self, vlm: VLM, defense: Defense | None, examples: Sequence[Example], of: Search
    ) -> list[list[str]]:
        """How the answers to requests that nothing is measured with shall begin, by variant."""
        texts = self.worded(vlm, defense, of)
        return [[opened(text, goal_of(example)) for example in examples] for text in texts]

    def wishes(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search
    ) -> Iterator[Wish]:
        """What pictures are made for, in an order that is always the same.

        UsageError where one picture for all would take the place of a request's own.
        """
        drawn = unrelated_start(of.seed)
        if self.each:
            for name, text in zip(self.pictures, self.worded(vlm, defense, of), strict=True):
                for example in held_out:
                    own = example.load_images()[:1]
                    start = own[0].convert("RGB") if own else drawn
                    yield Wish(name, [example], [opened(text, goal_of(example))], start, example.id)
            return
        if pictured := next((example.id for example in held_out if example.images), None):
            raise UsageError(
                f"The request {pictured!r} has a picture of its own, which {self.name} would "
                "replace; pass each=1 to begin with it."
            )
        examples = self.optimised_on(of)
        targets = self.targets(vlm, defense, examples, of)
        for name, some in zip(self.pictures, targets, strict=True):
            yield Wish(name, examples, some, drawn)

    def term(self, vlm: VLM, defense: Defense | None, wish: Wish) -> Any:
        """What is added to the loss, as `universal_image` takes it."""
        return None

    def settings(self, of: Search) -> dict[str, Any]:
        """What decides its pictures, beside the model, the defense and the requests."""
        return {**asdict(self), "seed": of.seed, "dtype": of.model.dtype}

    def search(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search, progress: Any = None
    ) -> None:
        """Make what isn't there yet. Raises UsageError for pictures of something else."""
        told = {
            "model": config_digest(dict(of.identity)),
            "defense": str(self.sees(defense)),
            "requests": config_digest({"ids": [e.digest() for e in self._asked(held_out, of)]}),
            "settings": config_digest(self.settings(of)),
        }
        done = _begun(of.folder, told, self.steps)
        if len(done.pictures) == self._many(held_out):
            if of.turns is not None:
                of.turns.next(self._many(held_out) * self.restarts)
            return
        wishes = list(self.wishes(vlm, defense, held_out, of))
        for number, wish in enumerate(wishes):
            if of.turns is not None:
                self._attempted(vlm, defense, wish, of, number, of.turns.next(self.restarts))
            elif number >= len(done.pictures):
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
        """The requests that decide the pictures."""
        return [*self.optimised_on(of), *(held_out if self.each else ())]

    def _many(self, held_out: Suite) -> int:
        """How many pictures are made."""
        return len(self.pictures) * (len(held_out) if self.each else 1)

    def _attempted(
        self,
        vlm: VLM,
        defense: Defense | None,
        wish: Wish,
        of: Search,
        number: int,
        attempts: Sequence[int],
    ) -> None:
        """Some of the attempts at a wish, as far as their checkpoints."""
        if attempts:
            descend_attempts(
                vlm,
                wish.examples,
                wish.targets,
                wish.start,
                self.descent(of.seed),
                attempts,
                through=None if defense is None else Through(defense),
                until=Plateau(),
                term=self.term(vlm, defense, wish),
                checkpoint=of.folder / f"state-{number}.safetensors",
            )

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


def pictures_in(folder: Path) -> PictureFacts:
    """The facts in a folder of pictures; DataError for what care doesn't write there."""
    todo = "delete it and resume to make them again"
    facts = read_json(folder / PICTURES, "pictures", otherwise=todo)
    return from_tree(PictureFacts, facts, strict=False, what=str(folder / PICTURES), todo=todo)


def beside(files: Mapping[str, Path], example: Example) -> Example:
    """The example with the picture that was made for it, or for all."""
    file = files.get(example.id, files.get(ALL))
    return example if file is None else replace(example, images=(file,))


def goal_of(example: Example) -> str:
    """What is asked for."""
    return example.goal or example.prompt


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
