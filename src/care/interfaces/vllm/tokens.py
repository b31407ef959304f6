"""Which tokens of one step of vLLM a repair edits.

A step holds pieces of several requests, one after the other: a part of a prompt, or the last token
of an answer. What a position is follows from its place in its sequence and from the prompt's tokens
alone, as everywhere in this package (`care.models.sites`): so a request's prompt is looked at once,
when it comes, and every step cuts its piece out of that. Positions after the prompt are the
answer's, also where vLLM reads an answer again that it had put aside. The masks of a step are
written into a buffer that compiled layers and CUDA graphs read, before they run.

What vLLM keeps of a prompt for the next request (its prefix cache) is right for that one only where
what is edited doesn't depend on where the prompt ends: `outlives_its_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from care.defenses.repair.channel import Channel
from care.models.sites import Scope, reaches_answers, roles_of_inputs, scope_mask

Scopes = tuple[Scope, ...]


@dataclass(frozen=True, eq=False)
class EditedTokens:
    """Which tokens of one request are edited, in each of S sets of scopes."""

    prompt: np.ndarray
    """(P, S) of bool, for the tokens of its prompt."""
    answer: np.ndarray
    """(S,) of bool, for those after it."""

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[int],
        scopes: Sequence[Scopes],
        image_token_id: int | None,
        off: bool = False,
    ) -> EditedTokens:
        """From the prompt's tokens, pictures expanded; none of a request that is `off`."""
        ids = torch.tensor([list(prompt_ids)])
        roles = roles_of_inputs(ids, None, image_token_id)
        prompt = torch.stack([scope_mask(roles, each)[0] for each in scopes], dim=1).numpy()
        answer = np.array([reaches_answers(each) for each in scopes])
        return cls(prompt & ~np.bool_(off), answer & ~np.bool_(off))

    def between(self, first: int, end: int) -> np.ndarray:
        """(end − first, S) or, of nothing but an answer, (S,)."""
        if first >= len(self.prompt):
            return self.answer
        inside = self.prompt[first:end]
        if end <= len(self.prompt):
            return inside
        return np.concatenate([inside, np.tile(self.answer, (end - first - len(inside), 1))])


class StepMask:
    """The buffer of what is edited in the step that runs."""

    def __init__(self, scopes: Sequence[Scopes], tokens: int, device: torch.device) -> None:
        """For at most `tokens` tokens in a step; nothing is edited until it is written."""
        self.scopes = tuple(scopes)
        self.buffer = torch.zeros(tokens, len(self.scopes), dtype=torch.bool, device=device)
        """(tokens, S)."""

    def column(self, scopes: Scopes) -> int:
        """Where in S these scopes are."""
        return self.scopes.index(scopes)

    def write(
        self,
        requests: Sequence[EditedTokens],
        first: Sequence[int] | np.ndarray,
        counts: Sequence[int] | np.ndarray,
        length: int,
    ) -> None:
        """`counts` tokens of each request, from its position `first` on; none after them.

        `length` is that of the step, padding included.
        """
        mask, place = np.zeros((length, len(self.scopes)), dtype=bool), 0
        for request, start, count in zip(requests, first, counts, strict=True):
            mask[place : place + count] = request.between(int(start), int(start) + int(count))
            place += int(count)
        found = torch.from_numpy(mask)
        if self.buffer.device.type != "cpu":
            # A new one each time: the last may not have been copied yet.
            found = found.pin_memory()
        self._rows(length).copy_(found, non_blocking=True)

    def clear(self, length: int) -> None:
        """Nothing of a step of this length is edited."""
        self._rows(length).zero_()

    def _rows(self, length: int) -> Tensor:
        return self.buffer[:length]


def scopes_of(channels: Sequence[Channel]) -> tuple[Scopes, ...]:
    """The different scopes of channels that do anything, in order."""
    return tuple(dict.fromkeys(c.scopes for c in channels if c.strength > 0))


def everywhere(scopes: Scopes) -> bool:
    """Whether they hold every token."""
    return "all" in scopes


def outlives_its_prompt(scopes: Scopes) -> bool:
    """Whether a token is edited alike as a part of a longer prompt: a prefix cache is then right.

    What was answered is text of the next prompt, and the last token of this one no decision there.
    """
    if everywhere(scopes):
        return True
    text = "text" in scopes
    return text == ("response" in scopes) and (text or "decision" not in scopes)


def needs_pictures(scopes: Scopes) -> bool:
    """Whether tokens of pictures have to be told from others."""
    return not everywhere(scopes) and ("image" in scopes) != ("text" in scopes)
