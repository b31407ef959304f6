"""What answers requests: a protocol, and what the engines of one model share.

Here prompts are counted, and is known whether the engine can go on. How requests become answers is
each engine's own: `transformers_engine` works off batches, `upstream_engine` asks another server
for each. torch is imported with the model, so that a server answers before. Not here: HTTP, and who
may ask for what.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from care.data.conversation import Conversation
from care.errors import DataError
from care.interfaces.requests.decoding import Decoding
from care.interfaces.serve.failures import TOO_LONG, ModelStopped, invalid
from care.models.alarms import Withdrawn
from care.models.thoughts import Tags

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.responses import Answer
    from care.models.vlm import VLM


@dataclass(eq=False)
class Pending:
    """A request that waits for its answer."""

    conversation: Conversation
    """What is asked."""
    decoding: Decoding
    """How it is answered."""
    repaired: bool = True
    """Whether the repair is put on."""
    tell: Callable[[str | Withdrawn], None] | None = None
    """Told the pieces of a stream while the answer is made, in a thread of the engine's."""
    gone: bool = False
    """Whether nobody waits for it any more."""


@dataclass(frozen=True)
class Served:
    """An answer, and what it was made under."""

    answer: Answer
    """The answer."""
    repair: str | None
    """Digest of the repair that was put on; None of the bare model and of a defense without."""


class Engine(Protocol):
    """What answers requests under one repair. Other engines than transformers' go here."""

    tags: Tags
    """Between which the model thinks before it answers."""

    def count(self, conversation: Conversation, longest: int) -> int:
        """Tokens of a prompt; DataError for one that can't be read, and RequestFailure where it
        can't be with an answer of `longest` tokens. In any thread."""
        ...

    async def answer(self, asked: Pending) -> Served:
        """The answer, when it is there; what comes of it earlier goes to `asked.tell`."""
        ...

    def stop(self) -> None:
        """End what is being answered, in ModelStopped, and answer nothing more."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it can go on answering."""
        ...


class OneModel:
    """One model in this process, under one repair."""

    def __init__(self, vlm: VLM, defense: Defense, hold: int | None = None) -> None:
        self._vlm, self._defense, self._hold = vlm, defense, hold
        self.tags, self._digest = vlm.thought_tags, defense.digest()
        # A tokenizer can't be used by two threads at once, so prompts are counted with another.
        self._processor, self._counting = copy.deepcopy(vlm.processor), Lock()
        self._stopped = self._broken = False

    def count(self, conversation: Conversation, longest: int) -> int:
        """See `Engine`: the prompt is encoded as the model gets it, so that what can't be is told
        here and disturbs nobody."""
        from care.models.batches import encode

        image_token, context = self._vlm.anatomy.image_token_id, self._vlm.context
        with self._counting:
            inputs, _ = encode(self._processor, [conversation], [[]], image_token)
        tokens = int(inputs["attention_mask"].sum())
        if context is not None and tokens + longest > context:
            raise invalid(
                f"The prompt has {tokens:,} tokens and its answer up to {longest:,}, together more "
                f"than the {context:,} that {self._vlm.name} can read; shorten one of them.",
                "messages",
                TOO_LONG,
            )
        return tokens

    def stop(self) -> None:
        """See `Engine`."""
        self._stopped = True

    @property
    def alive(self) -> bool:
        """See `Engine`."""
        return not (self._stopped or self._broken)

    def _served(self, answer: Answer, asked: Pending) -> Served:
        return Served(answer, self._digest if asked.repaired else None)

    def _told(self, vlm: VLM, asked: Pending, how: dict[str, Any]) -> Answer:
        """The answer to a stream, which is told its pieces."""
        from care.defenses.base import stream_under
        from care.models.responses import Answer

        assert asked.tell is not None
        defense = self._defense if asked.repaired else None
        said = stream_under(defense, vlm, asked.conversation, self._hold, **how)
        try:
            for each in said:
                if isinstance(each, Answer):
                    return each
                asked.tell(each)
        finally:
            if isinstance(said, Generator):  # a defense may give any iterator
                said.close()
        raise AssertionError("a stream ends with its answer")

    def _look(self, *awaited: Pending) -> None:
        """ModelStopped where nobody waits for an answer to these any more."""
        if self._stopped or all(asked.gone for asked in awaited):
            raise ModelStopped("Nobody waits for this answer, or the server ends.")

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """Of an error that leaves the device unusable it is remembered that it was there."""
        try:
            yield
        except RuntimeError as error:
            self._broken = self._broken or _is_final(error)
            raise


def options(decoding: Decoding, batch_size: int) -> dict[str, Any]:
    """How `VLM.answers` is asked."""
    return {
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "seed": decoding.seed,
        "stop": decoding.stop,
        "batch_size": batch_size,
    }


@contextmanager
def read_again() -> Iterator[None]:
    """A DataError of an answer says so: the prompt was read before it waited."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"The answer is too long to be read again by the monitors ({error}) and can't be "
            "given unread; ask for a shorter one."
        ) from error


def _is_final(error: RuntimeError) -> bool:
    """Whether an error leaves the device unusable for this process."""
    told = str(error)
    return "CUDA error" in told and "out of memory" not in told
