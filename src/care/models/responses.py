"""What a model said, and how likely it is to say something.

A `Responder` asks for answers batch by batch and keeps apart what ended them: the model, `stop`,
the number of tokens asked for, the context, or numbers that aren't finite, which leave no answer.
Not here: the choice of tokens (`decoding`), and the public way in (`VLM.generate`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from care.data.example import Example
from care.errors import DataError, NotFiniteError, UsageError
from care.models.batches import render
from care.models.decoding import End, Rows, decode, row_seeds
from care.models.finite import not_finite
from care.models.thoughts import opened_by, outside_thoughts

if TYPE_CHECKING:
    from care.models.prompt_cache import Start
    from care.models.vlm import VLM


@dataclass(frozen=True)
class Score:
    """Log-likelihood of one response per example."""

    logprob: np.ndarray
    """Total log-likelihood in nats (N,)."""

    tokens: np.ndarray
    """Number of response tokens (N,)."""

    greedy: np.ndarray
    """Whether every token is the likeliest at its place (N,)."""

    @property
    def mean(self) -> np.ndarray:
        """Log-likelihood per token (N,)."""
        return self.logprob / self.tokens


@dataclass(frozen=True)
class Answer:
    """One answer, and how long it and its prompt are."""

    text: str
    """The answer, thoughts included; it begins with the tag that a chat template has opened."""

    prompt_tokens: int
    """Tokens of the prompt, those of its images included."""

    tokens: int
    """Tokens of the answer, without the one that ended it."""

    ended: bool
    """Whether the model or `stop` ended it; otherwise it was cut at `max_new_tokens`, or before."""

    context_full: bool = False
    """Whether it was cut before `max_new_tokens` because the model can read no more."""


@dataclass(frozen=True)
class Responder:
    """Answers to some of `examples`, from where their prompts end."""

    vlm: VLM
    """The model."""
    examples: list[Example]
    """What it may be asked."""
    max_new_tokens: int
    """Most tokens of an answer."""
    temperature: float
    """0 is greedy."""
    seed: int
    """Of answers that are drawn."""
    stop: Callable[[str], bool] | None
    """See `VLM.generate`."""
    seeds: list[int] = field(init=False)
    """One for each example."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise UsageError(f"temperature must be 0 or positive, got {self.temperature}.")
        drawn = bool(self.temperature)
        seeds = row_seeds(self.examples, self.seed) if drawn else [0] * len(self.examples)
        object.__setattr__(self, "seeds", seeds)

    def __call__(self, chunk: Sequence[int], start: Start) -> list[Answer | None]:
        """Answers to the examples with these indices; None where the logits weren't finite.

        Raises DataError for a prompt that leaves no room for an answer.
        """
        lengths = start.inputs["attention_mask"].sum(dim=1).tolist()
        tags = self.vlm.thought_tags
        prompts = (render(self.vlm.processor, self.examples[index]) for index in chunk)
        opened = [opened_by(prompt, tags) for prompt in prompts]
        rows = Rows(
            eos=self.vlm._eos(),
            text=lambda tokens: opened[0] + self.vlm._text(tokens),  # one template, one tag
            stop=None if self.stop is None else outside_thoughts(self.stop, tags),
            temperature=self.temperature,
            generators=[torch.Generator().manual_seed(self.seeds[index]) for index in chunk],
            room=self._room([self.examples[index] for index in chunk], lengths),
        )
        decode(self.vlm, start, rows, self.max_new_tokens)
        return [
            None if end == "failed" else self._answer(tag, tokens, length, end)
            for tag, tokens, length, end in zip(
                opened, rows.tokens, lengths, rows.ends, strict=True
            )
        ]

    def _answer(self, tag: str, tokens: list[int], length: int, end: End | None) -> Answer:
        ended, full = end in ("model", "stop"), end == "room"
        return Answer(tag + self.vlm._text(tokens), length, len(tokens), ended, full)

    def _room(self, examples: Sequence[Example], lengths: Sequence[int]) -> list[int] | None:
        """Most tokens of each answer where the context ends before `max_new_tokens`."""
        limit, most = self.vlm.context, self.max_new_tokens
        if limit is None or max(lengths) + most <= limit:
            return None
        for example, length in zip(examples, lengths, strict=True):
            if length >= limit:
                raise DataError(
                    f"Example {example.id!r} has {length} tokens and leaves no room for an answer "
                    f"in the {limit} that {self.vlm.name} can read; shorten it."
                )
        # Where `max_new_tokens` fits, it is what ends the answer.
        return [limit - n if limit - n < most else most + 1 for n in lengths]


def complete(vlm: VLM, found: Sequence[Answer | None]) -> list[Answer]:
    """All answers of one call; NotFiniteError if one is missing, a warning if one was cut."""
    answers = [answer for answer in found if answer is not None]
    if len(answers) < len(found):
        raise NotFiniteError(not_finite(vlm.name, vlm.dtype), found)
    if cut := sum(answer.context_full for answer in answers):
        warnings.warn(
            f"{cut} of {len(answers)} answers were cut because {vlm.name} can read no more than "
            f"{vlm.context} tokens; shorten the prompts.",
            stacklevel=3,
        )
    return answers
