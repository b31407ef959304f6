"""Prompts that have been read: the part of the work that several answers to them can share.

A defense that edits nothing before the last position of a prompt leaves the keys and values of all
earlier positions as they are. So they are computed once, undefended, and answers under each such
defense start from them: with T prompt tokens the first pass reads one token instead of T. The
cached tensors are referenced and never written to (what grows are other tensors, of each answer's
own: `roomy_layers`), so one cache serves any number of answers. Not here: the choice of tokens
(`decoding`).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from care.data.example import Example
from care.errors import UsageError
from care.models.batches import Batch
from care.models.caches import cache_argument
from care.models.roomy_layers import roomy_cache
from care.models.sites import Role, RoleContext

PLAIN_POSITIONS = frozenset({"llava", "idefics3", "smolvlm", "internvl"})
"""Model types with a plain KV cache and 1-D positions, for which our own loop is tested."""


def plain_positions(model: Any) -> bool:
    """Whether `model` can be run with positions and a cache of our own making."""
    return model.config.model_type in PLAIN_POSITIONS


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions (B, T) that count real tokens only, as `generate` makes them: padding is 0."""
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 0)


@dataclass(frozen=True)
class Start:
    """Where the answers to B left-padded prompts of T tokens start."""

    inputs: dict[str, Any]
    """The model's arguments for the last t positions; its `attention_mask` (B, T) covers all."""

    roles: Tensor
    """`Role` of the last t positions (B, t)."""

    cache: DynamicCache | None = None
    """Keys and values of the T − t positions before them; None if t = T."""

    @classmethod
    def of(cls, batch: Batch) -> "Start":
        """Whole prompts that nothing has been read of."""
        return cls(batch.inputs, batch.roles)

    def __len__(self) -> int:
        return self.roles.shape[0]

    def new_cache(self, config: Any) -> DynamicCache:
        """A cache to decode with, empty or holding the shared tensors, which stay as they are."""
        if self.cache is None:
            return roomy_cache(config)
        return _same_tensors(self.cache)

    def part(self, rows: Sequence[int]) -> "Start":
        """The start of some rows; UsageError without a cache (pictures don't belong to one row)."""
        if self.cache is None:
            raise UsageError("Prompts that haven't been read can't be split; encode them anew.")
        index = torch.tensor(rows, device=self.roles.device)
        cache = _same_tensors(self.cache)
        cache.batch_select_indices(index)
        inputs = {key: value[index] for key, value in self.inputs.items()}
        return Start(inputs, self.roles[index], cache)


@dataclass(frozen=True)
class PromptCache:
    """N examples that have been read, in batches; made by `VLM.prefill`.

    It can be passed in the place of examples. Edits that are active then apply from the last
    position of each prompt on, so only those that edit nothing before it give the answers of the
    examples themselves. In the first pass hooks see that one position, as text, and the openings of
    answers, if there are any; scope "decision" matches the last of a prompt.
    """

    examples: list[Example]
    """The examples, in the order of their answers."""

    parts: list[tuple[list[int], Start]]
    """For each batch, which examples it holds (indices) and where their answers start."""

    def only(self, places: Sequence[int]) -> "PromptCache | list[Example]":
        """What to ask a model with for some of the examples, by place, in that order.

        They are read anew where they weren't read ahead.
        """
        asked = [self.examples[place] for place in places]
        if any(start.cache is None for _, start in self.parts):
            return asked
        order = {place: number for number, place in enumerate(places)}
        parts = []
        for indices, start in self.parts:
            rows = [row for row, index in enumerate(indices) if index in order]
            if rows:
                parts.append(([order[indices[row]] for row in rows], start.part(rows)))
        return PromptCache(asked, parts)


def read_prompts(model: Any, roles: RoleContext, start: Start) -> Start:
    """Run what comes before the last position of every prompt, so that answers start there.

    With answers of which the longest opening has o tokens, 1 + o positions are left. Returns
    `start` itself where that isn't possible: for a model whose positions aren't plain
    (`PLAIN_POSITIONS`), or where a part of a picture would be left. Edits must not be active.
    """
    ids, mask = start.inputs["input_ids"], start.inputs["attention_mask"]
    left = 1 + int((start.roles == Role.RESPONSE).sum(dim=1).max())
    whole = bool((start.roles[:, -left:] != Role.IMAGE).all())
    if not plain_positions(model) or ids.shape[1] <= left or not whole:
        return start
    before = {
        key: value[:, :-left] if isinstance(value, Tensor) and value.shape == ids.shape else value
        for key, value in start.inputs.items()
    }
    before["position_ids"] = position_ids(mask)[:, :-left]
    cache = start.new_cache(model.config)
    with torch.no_grad(), roles.known(start.roles[:, :-left]):
        model(**before, **{cache_argument(model): cache}, use_cache=True, logits_to_keep=1)
    last = {"input_ids": ids[:, -left:], "attention_mask": mask}
    return Start(last, start.roles[:, -left:], cache)


def first_logits(model: Any, roles: RoleContext, start: Start) -> Tensor:
    """Logits (B, vocabulary) of the answers' first token, under the edits active now."""
    step = dict(start.inputs)
    if plain_positions(model):
        step["position_ids"] = position_ids(step["attention_mask"])[:, -start.roles.shape[1] :]
        step["logits_to_keep"] = 1
    if start.cache is not None:
        step[cache_argument(model)] = start.new_cache(model.config)
    with torch.no_grad(), roles.known(start.roles):
        return model(**step, use_cache=start.cache is not None).logits[:, -1]


def _same_tensors(cache: DynamicCache) -> DynamicCache:
    """Another cache over the same tensors: updates and selections put new ones in their place."""
    other = copy(cache)
    other.layers = [copy(layer) for layer in cache.layers]
    return other
