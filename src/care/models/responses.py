"""What a model said, and how likely it is to say something.

A `Responder` asks for answers batch by batch and keeps apart what ended them: the model, `stop`,
the number of tokens asked for, the context, or numbers that aren't finite, which leave no answer.
Not here: the choice of tokens (`decoding`), and the public way in (`VLM.generate`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.errors import DataError, NotFiniteError, UsageError
from care.models.alarms import Alarm, Source
from care.models.batches import answer_ids, render
from care.models.decoding import AnswerRows, End, decode, end_tokens, row_seeds
from care.models.finite import not_finite
from care.models.prompt_cache import Start
from care.models.sites import RoleContext
from care.models.stops import after_opening
from care.models.thoughts import Tags, opened_by, outside_thoughts, text_of

REFUSAL = "I'm sorry, but I can't help with that."
"""The answer that is given where none of the model's is."""


@dataclass(frozen=True)
class Score:
    """Log-likelihood of one response per example."""

    logprob: np.ndarray
    """Total log-likelihood in nats (N,)."""

    tokens: np.ndarray
    """Number of response tokens (N,)."""

    greedy: np.ndarray
    """Whether every token is the likeliest at its place (N,)."""

    @classmethod
    def of(cls, found: Sequence[tuple[float, int, bool]]) -> Score:
        """From what `likelihoods` says of each response."""
        return cls(
            logprob=np.array([total for total, _, _ in found], dtype=np.float64),
            tokens=np.array([count for _, count, _ in found], dtype=np.int64),
            greedy=np.array([greedy for _, _, greedy in found], dtype=bool),
        )

    @property
    def mean(self) -> np.ndarray:
        """Log-likelihood per token (N,)."""
        return self.logprob / self.tokens


@dataclass(frozen=True)
class Answer:
    """One answer, and how long it and its prompt are."""

    text: str
    """The answer, thoughts included; it begins with the tag that a chat template has opened, and
    with the example's opening."""

    prompt_tokens: int
    """Tokens of the prompt, those of its images included."""

    tokens: int
    """Tokens of the answer, those of its opening included, without the one that ended it."""

    ended: bool
    """Whether the model or `stop` ended it; otherwise it was cut at `max_new_tokens`, or before."""

    context_full: bool = False
    """Whether it was cut before `max_new_tokens` because the model can read no more."""

    source: Source = "model"
    """Where it comes from."""

    alarms: tuple[Alarm, ...] = ()
    """What monitors raised, in order."""


def refusal() -> Answer:
    """A refusal in the place of an answer, for which nothing was read or decoded."""
    return Answer(REFUSAL, 0, 0, ended=True, source="refusal")


@dataclass(frozen=True, kw_only=True)
class Responder:
    """Answers to some of `examples`, from where their prompts end."""

    model: Any
    """What is run."""
    processor: Any
    """Its processor, with the tokenizer and the chat template."""
    roles: RoleContext
    """Where the roles of positions are said to hooks."""
    name: str
    """The model's name, for errors."""
    context: int | None
    """Most tokens of prompt and answer together; None where there is no limit."""
    tags: Tags
    """Between which the model thinks."""
    examples: list[Example]
    """What it may be asked."""
    max_new_tokens: int
    """Most tokens of an answer after its opening."""
    temperature: float
    """0 is greedy."""
    seed: int
    """Of answers that are drawn."""
    stop: Callable[[str], bool] | None
    """See `VLM.generate`."""
    heard: Callable[[str, int], None] | None = None
    """See `VLM.answers`."""
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
        asked = [self.examples[index] for index in chunk]
        opened = [opened_by(render(self.processor, example), self.tags) for example in asked]
        tokenizer = self.processor.tokenizer
        begun = [answer_ids(tokenizer, example.opening) for example in asked]
        rows = AnswerRows(
            eos=end_tokens(self.model, tokenizer),
            text=lambda tokens: opened[0] + self._text(tokens),  # one template, one tag
            stops=self._stops(asked),
            temperature=self.temperature,
            generators=[torch.Generator().manual_seed(self.seeds[index]) for index in chunk],
            room=self._room(asked, lengths, begun),
            begun=begun,
            heard=self.heard,
        )
        decode(self.model, self.roles, start, rows, self.max_new_tokens, tokenizer.pad_token_id)
        return [
            None if end == "failed" else self._answer(tag, tokens, length - len(opening), end)
            for tag, tokens, length, opening, end in zip(
                opened, rows.tokens, lengths, begun, rows.ends, strict=True
            )
        ]

    def _stops(self, examples: Sequence[Example]) -> list[Callable[[str], bool]] | None:
        """The early stop of each answer."""
        if (stop := self.stop) is None:
            return None
        tags = self.tags
        return [outside_thoughts(after_opening(stop, e.opening, tags), tags) for e in examples]

    def _answer(self, tag: str, tokens: list[int], length: int, end: End | None) -> Answer:
        ended, full = end in ("model", "stop"), end == "room"
        return Answer(tag + self._text(tokens), length, len(tokens), ended, full)

    def _text(self, tokens: list[int]) -> str:
        return text_of(self.processor.tokenizer, tokens, self.tags)

    def _room(
        self, examples: Sequence[Example], lengths: Sequence[int], begun: Sequence[list[int]]
    ) -> list[int] | None:
        """Most tokens of each answer where the context ends before `max_new_tokens`.

        `lengths` count the openings that are `begun` too, and so do the answers.
        """
        limit, most = self.context, self.max_new_tokens
        if limit is None or max(lengths) + most <= limit:
            return None
        for example, length in zip(examples, lengths, strict=True):
            if length >= limit:
                raise DataError(
                    f"Example {example.id!r} has {length} tokens and leaves no room for an answer "
                    f"in the {limit} that {self.name} can read; shorten it."
                )
        # Where `max_new_tokens` fits, it is what ends the answer.
        left = [limit - n if limit - n < most else most + 1 for n in lengths]
        return [len(opening) + more for opening, more in zip(begun, left, strict=True)]


def complete(
    found: Sequence[Answer | None], name: str, dtype: torch.dtype, context: int | None
) -> list[Answer]:
    """All answers of one call; NotFiniteError if one is missing, a warning if one was cut.

    `name`, `dtype` and `context` are the model's.
    """
    answers = [answer for answer in found if answer is not None]
    if len(answers) < len(found):
        raise NotFiniteError(not_finite(name, dtype), found)
    if cut := sum(answer.context_full for answer in answers):
        warnings.warn(
            f"{cut} of {len(answers)} answers were cut because {name} can read no more than "
            f"{context} tokens; shorten the prompts.",
            stacklevel=3,
        )
    return answers


def likelihoods(
    logits: Tensor, targets: Tensor, is_response: Tensor
) -> list[tuple[float, int, bool]]:
    """Of each of B responses its log-likelihood, its tokens, and whether each is the likeliest.

    `logits` (B, T, vocabulary) predict the tokens `targets` (B, T); those count that are in
    `is_response` (B, T).
    """
    logits = logits.float()
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    totals = chosen.where(is_response, 0).sum(dim=1, dtype=torch.float64)
    greedy = ((logits.argmax(-1) == targets) | ~is_response).all(dim=1)
    counts = is_response.sum(dim=1)
    return list(zip(totals.tolist(), counts.tolist(), greedy.tolist(), strict=True))
