"""Pictures for answers in other registers, and on the pictures that hold a request's goal.

The usual opening of answers is wished for, and those of `registers`, whatever a defense does. Where
a goal stands in no text (`pictured`), each descent begins with the request's own picture and has to
stay near it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from care.attacks.pictures import Pictures, Wish
from care.attacks.registers import PLAIN, REGISTERS
from care.attacks.variants import Search
from care.data.example import Example, Suite
from care.errors import UsageError
from care.runs.settings import require

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.vlm import VLM


@dataclass(frozen=True)
class Registers(Pictures):
    """A picture for the usual opening of answers, and one for each other register."""

    name: ClassVar[str] = "registers"
    source: ClassVar[str] = "this project; PGD: Madry et al. 2018"

    n: int = len(REGISTERS) + 1
    """How many of the registers, the usual one first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {"n": 1}, len(REGISTERS) + 1)
        if self.each and self.requests:
            raise UsageError("With each=1 a picture is made for each held-out request itself.")

    @property
    def pictures(self) -> list[str]:
        """One for each register."""
        return [PLAIN, *REGISTERS][: self.n]

    def optimised_on(self, of: Search) -> list[Example]:
        """Requests that pictures are made for and that must not be held out."""
        return [] if self.each else super().optimised_on(of)

    def worded(self, vlm: VLM, defense: Defense | None, of: Search) -> list[str]:
        """Each register's opening."""
        return [REGISTERS.get(name) or self.usual(of) for name in self.pictures]


@dataclass(frozen=True)
class Pictured(Registers):
    """Noise on the picture that holds a request's goal, for that request."""

    name: ClassVar[str] = "pictured"
    held_out: ClassVar[str | None] = "pictured-goal"

    kappa: int = 32
    n: int = 1
    each: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {"each": 1})

    def wishes(
        self, vlm: VLM, defense: Defense | None, held_out: Suite, of: Search
    ) -> Iterator[Wish]:
        """Each register, from each request's own picture."""
        if bare := next((example.id for example in held_out if not example.images), None):
            raise UsageError(
                f"The request {bare!r} has no picture for {self.name} to begin with; name a suite "
                "of pictured goals with suite=NAME."
            )
        yield from super().wishes(vlm, defense, held_out, of)
