"""The engine of transformers, which works off one batch at a time.

Requests that wait together and are to be answered alike are one batch (`Batches`). A stream that
has its batch to itself is told piece by piece; one among others is answered with them, and told
when it has been read whole. Whoever hangs up sets `gone`: where nobody waits for a batch any more,
the model ends it after the token that it is at, and where somebody does, it goes on for those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from care.interfaces.requests.batching import Batches
from care.interfaces.requests.decoding import Decoding
from care.interfaces.serve.engine import OneModel, Pending, Served, options, read_again

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.responses import Answer
    from care.models.vlm import VLM


class TransformersEngine(OneModel):
    """A model that answers in this process."""

    def __init__(
        self, vlm: VLM, defense: Defense, batch_size: int, hold: int | None = None
    ) -> None:
        super().__init__(vlm, defense, hold)
        self._size, self._batches = batch_size, Batches(batch_size, self._work)

    async def answer(self, asked: Pending) -> Served:
        """See `Engine`."""
        with read_again():
            answer = await self._batches.ask((asked.decoding, asked.repaired), asked)
        return self._served(answer, asked)

    def _work(self, settings: tuple[Decoding, bool], batch: list[Pending]) -> Sequence[Answer]:
        how = options(settings[0], self._size)
        with self._while_awaited(batch):
            if len(batch) == 1 and batch[0].tell is not None:
                found = [self._told(self._vlm, batch[0], how)]
            else:
                found = self._answers(settings[1], batch, how)
        return [
            self._counted(answer, asked.conversation.opening)
            for answer, asked in zip(found, batch, strict=True)
        ]

    def _counted(self, answer: Answer, opening: str) -> Answer:
        """Numbers of tokens as other servers tell them: words that others began an answer with
        belong to the prompt. Only the model's answer to all that was asked has them."""
        if answer.source != "model":
            return answer
        begun = len(self._vlm.response_ids(opening))
        prompt, tokens = answer.prompt_tokens + begun, answer.tokens - begun
        return replace(answer, prompt_tokens=prompt, tokens=tokens)

    def _answers(self, repaired: bool, batch: list[Pending], how: dict[str, Any]) -> list[Answer]:
        from care.defenses.base import answers_under

        # Of equal requests in one call each would be drawn by another seed, so each is asked once.
        keys = [asked.conversation.digest() for asked in batch]
        distinct = dict(zip(keys, (asked.conversation for asked in batch), strict=True))
        defense = self._defense if repaired else None
        found = answers_under(defense, self._vlm, list(distinct.values()), **how)
        known = dict(zip(distinct, found, strict=True))
        return [known[key] for key in keys]

    @contextmanager
    def _while_awaited(self, batch: Sequence[Pending]) -> Iterator[None]:
        """Before every pass of the model, look whether anybody still waits for the batch."""
        self._look(*batch)
        hook = self._vlm.model.register_forward_pre_hook(lambda *_: self._look(*batch))
        try:
            with self._noticed():
                yield
        finally:
            hook.remove()
