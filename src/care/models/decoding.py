"""Token-by-token decoding of one left-padded batch, with a shrinking batch.

`decode` picks the loop: models whose cache and positions are plain (`prompt_cache`) run through a
loop of our own that drops finished rows from the KV cache, so that one long answer doesn't keep a
whole batch busy; all others run through `model.generate` with the same picks.

Sampling is greedy decoding of perturbed logits (Gumbel-max): with g_v i.i.d. standard Gumbel,

    argmax_v (logits_v / temperature + g_v)  ~  softmax(logits / temperature)

where every row draws from a generator of its own, so an answer doesn't depend on its batch.
"""

import hashlib
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from care.data.example import Example
from care.errors import ModelError
from care.models.caches import cache_argument
from care.models.finite import sound
from care.models.generations import library_generate
from care.models.prompt_cache import Start, plain_positions, position_ids
from care.models.sites import Role, RoleContext

NO_TOKEN = -1
"""Stands for a token that can't be picked because the logits aren't finite."""

COLDEST = 1e-5
"""Least temperature at which tokens are drawn: below it the likeliest is almost certain, and logits
divided by much less aren't finite."""

STOP_EVERY = 4
"""A row's text is shown to its stop after every so many tokens."""


End = Literal["model", "stop", "room", "failed"]


@dataclass
class AnswerRows:
    """The rows of one batch while they are decoded."""

    eos: frozenset[int]
    """Tokens that end an answer; never part of it."""

    text: Callable[[list[int]], str]
    """Decodes token ids to text."""

    stops: Sequence[Callable[[str], bool]] | None
    """One per row, asked every `STOP_EVERY` tokens of it; true finishes the row."""

    temperature: float
    """0 is greedy, and so is less than `COLDEST`."""

    generators: Sequence[torch.Generator]
    """One per row; unused when greedy."""

    tokens: list[list[int]] = field(default_factory=list)
    """Answer tokens of each row so far, without the token that ended it."""

    ends: list[End | None] = field(default_factory=list)
    """What ended each row that is done: the model's own end token, its `stop`, no more `room`, or
    logits that weren't finite (`failed`: then it holds no answer)."""

    room: Sequence[int] | None = None
    """Most tokens of each row, where its context has that few left."""

    begun: Sequence[Sequence[int]] = ()
    """Tokens with which each row begins, of which the model reads as if it had said them."""

    heard: Callable[[str, int], None] | None = None
    """Told a row's answer so far and its tokens, after each of them."""

    def __post_init__(self) -> None:
        self.tokens = [list(opening) for opening in self.begun] or [[] for _ in self.generators]
        self.ends = [None] * len(self.generators)

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn, and not the likeliest."""
        return self.temperature >= COLDEST

    @property
    def finished(self) -> list[bool]:
        """Which rows are done."""
        return [end is not None for end in self.ends]

    def pick(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """The next token of each row (len(rows),); `NO_TOKEN` where there is none to pick."""
        # The value with its place: `argmax` alone takes several times as long in bfloat16.
        greatest, picked = self.noise(logits, rows).max(dim=-1)
        sure = sound(logits) if self.drawn else greatest.isfinite()
        return picked.masked_fill(~sure, NO_TOKEN)

    def noise(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Perturbed logits (len(rows), vocabulary); the argmax of a row is its next token."""
        if not self.drawn:
            return logits
        gumbel = torch.empty(logits.shape, dtype=torch.float32)
        for index, row in enumerate(rows):
            gumbel[index].exponential_(generator=self.generators[row])
        # −log of a standard exponential is a standard Gumbel.
        return logits.float() / self.temperature - gumbel.log().to(logits.device)

    def push(self, row: int, token: int) -> None:
        """Append one token to a row that isn't finished, and see whether it finishes the row."""
        if token in self.eos or token == NO_TOKEN:
            self.ends[row] = "failed" if token == NO_TOKEN else "model"
            return
        answer = self.tokens[row]
        answer.append(token)
        if self.heard is not None:
            self.heard(self.text(answer), len(answer))
        stop = None if self.stops is None or len(answer) % STOP_EVERY else self.stops[row]
        if stop is not None and stop(self.text(answer)):
            self.ends[row] = "stop"
        elif self.room is not None and len(answer) >= self.room[row]:
            self.ends[row] = "room"


def decode(
    model: Any,
    roles: RoleContext,
    start: Start,
    rows: AnswerRows,
    max_new_tokens: int,
    pad_token_id: int,
) -> None:
    """Extend every row by up to `max_new_tokens` tokens; `rows` holds the result.

    `start` is where the B = len(rows.tokens) answers go on, after their openings; it stays as it
    is. Only models whose positions are plain can start from a cache.
    """
    with torch.no_grad():
        if plain_positions(model):
            _shrinking_loop(model, roles, start, rows, max_new_tokens)
            return
        with roles.begun_by(start.roles):
            library_loop(model, start.inputs, rows, max_new_tokens, pad_token_id)


def row_seeds(examples: Sequence[Example], seed: int) -> list[int]:
    """A seed per example from its content; repeats of one example get different ones."""
    seen: Counter[str] = Counter()
    seeds = []
    for example in examples:
        digest = example.digest()
        text = f"{seed}/{digest}/{seen[digest]}".encode()
        seeds.append(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
        seen[digest] += 1
    return seeds


def _shrinking_loop(
    model: Any, context: RoleContext, start: Start, rows: AnswerRows, max_new_tokens: int
) -> None:
    mask, roles = start.inputs["attention_mask"], start.roles
    cache = start.new_cache(model.config)
    common = {cache_argument(model): cache, "use_cache": True, "logits_to_keep": 1}
    positions = position_ids(mask)[:, -roles.shape[1] :]
    step: dict[str, Any] = {**start.inputs, "position_ids": positions}
    alive = list(range(len(rows.tokens)))
    for count in range(max_new_tokens):
        # The roles are given because one prompt token after a cache looks like an answer's.
        with context.known(roles, answering=count > 0):
            output = model(**step, **common)
        picked = rows.pick(output.logits[:, -1], alive)
        for row, token in zip(alive, picked.tolist(), strict=True):
            rows.push(row, token)
        keep = [index for index, row in enumerate(alive) if rows.ends[row] is None]
        if not keep:
            return
        if len(keep) < len(alive):
            index = torch.tensor(keep, device=mask.device)
            cache.batch_select_indices(index)
            mask, picked = mask[index], picked[index]
            alive = [alive[index] for index in keep]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        step = {
            "input_ids": picked[:, None],
            "attention_mask": mask,
            "position_ids": mask.long().sum(dim=1, keepdim=True) - 1,
        }
        roles = torch.full_like(step["input_ids"], int(Role.RESPONSE))


def library_loop(
    model: Any, inputs: dict[str, Any], rows: AnswerRows, max_new_tokens: int, pad_token_id: int
) -> None:
    """Extend every row by `model.generate`, whatever settings the model's file brings.

    `generate` fills what it isn't told from the model's `generation_config` (penalties, beams,
    suppressed tokens, time limits, …), which would make other answers than those that `score` and
    the loop of our own know of. Nor is a `generate` called that came with the weights.
    """
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(rows.eos),
        pad_token_id=pad_token_id,
    )
    generate = library_generate(model)
    with neutral_settings(model):
        generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Perturb(rows)]),
            stopping_criteria=StoppingCriteriaList([_Watch(rows)]),
        )


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that end an answer: the one setting that is taken from the model's file.

    Raises ModelError if they are no ids.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    try:
        return frozenset(
            operator.index(id) for id in [*ids, tokenizer.eos_token_id] if id is not None
        )
    except TypeError as error:
        raise ModelError(
            f"The generation_config of the model has eos_token_id = {configured!r:.80}, which is "
            "no token id; correct it."
        ) from error


@contextmanager
def neutral_settings(model: Any) -> Iterator[None]:
    """While open, the model and the parts that can generate have settings that change nothing."""
    parts = [part for part in model.modules() if "generation_config" in vars(part)]
    before = [part.generation_config for part in parts]
    try:
        for part in parts:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, config in zip(parts, before, strict=True):
            part.generation_config = config


class _Perturb(LogitsProcessor):
    """Adds the rows' own noise, so that the library's greedy search samples.

    Ends rows whose logits aren't finite; what the library picks for them isn't looked at.
    """

    def __init__(self, rows: AnswerRows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, fine in enumerate(sound(scores).tolist()):
            if not fine and self.rows.ends[row] is None:
                self.rows.push(row, NO_TOKEN)
        return self.rows.noise(scores, range(len(scores)))


class _Watch(StoppingCriteria):
    """Hands each new token to its row and reports which rows are finished."""

    def __init__(self, rows: AnswerRows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.rows.ends[row] is None:
                self.rows.push(row, token)
        return torch.tensor(self.rows.finished, device=input_ids.device)
