"""One request from a terminal: what is asked of which model, and how it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from care.models.spec import ModelSpec
from care.runs.settings import FILE, MAX_BATCH, MAX_SEED, Between, Said, check_bounds

if TYPE_CHECKING:
    from care.data.example import Example


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """One request to a model, bare or under a repair."""

    prompt: str = ""
    """What is asked; may be left out beside an image."""
    images: Annotated[tuple[Path, ...], Said("--image"), FILE] = ()
    """A picture beside it. Repeatable."""
    system: str | None = None
    """System message, if any."""
    repair: str | None = None
    """Folder of a repair (or its name on the Hub), or another defense; none: the bare model."""
    hold: Annotated[int | None, Between(0, MAX_BATCH)] = None
    """Tokens of the answer that are kept back until a monitor has read them; none: until the first
    reading."""
    max_new_tokens: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Length of the answer; none: 24 for the embedded model, 512 for others."""
    temperature: Annotated[float, Between(0, 100)] = 0.0
    """0 is greedy; more draws the answer."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of an answer that is drawn."""
    model: ModelSpec = ModelSpec()
    """What is asked."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def example(self) -> Example:
        """The request; DataError for one without words and pictures."""
        from care.data.example import Example  # its pictures need numpy, and help doesn't

        return Example("request", self.prompt, images=self.images, system=self.system)

    @property
    def how(self) -> dict[str, Any]:
        """How it is answered, as `VLM.answers` takes it."""
        return {
            "max_new_tokens": self.model.answer_length(self.max_new_tokens),
            "temperature": self.temperature,
            "seed": self.seed,
        }
