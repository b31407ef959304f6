"""Prefill: the part of prompts that several answers to them can share.

A defense that edits nothing before the last position of a prompt leaves the keys and values of all
earlier positions as they are. So they are computed once, undefended, and answers under each such
defense start from them: with T prompt tokens the first pass reads one token instead of T. The
cached tensors are referenced, never copied or written to (a `DynamicCache` grows by making new
tensors), so one prefill serves any number of answers. Not here: the choice of tokens (`decoding`).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from care.data.example import Example
from care.errors import UsageError
from care.models.caches import cache_argument
from care.models.decoding import PLAIN_POSITIONS, position_ids
from care.models.sites import Role

if TYPE_CHECKING:
    from care.models.vlm import VLM


@dataclass(frozen=True)
class Start:
    """Where the answers to B left-padded prompts of T tokens start."""

    inputs: dict[str, Any]
    """The model's arguments for the last t positions; its `attention_mask` (B, T) covers all."""

    roles: Tensor
    """`Role` of the last t positions (B, t)."""

    cache: DynamicCache | None = None
    """Keys and values of the T − t positions before them; None if t = T."""

    def __len__(self) -> int:
        return self.roles.shape[0]

    def new_cache(self, config: Any) -> DynamicCache:
        """A cache to decode with, empty or holding the shared tensors, which stay as they are."""
        if self.cache is None:
            return DynamicCache(config=config.get_text_config())
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
class Prefill:
    """N examples that have been read, in batches; made by `VLM.prefill`."""

    examples: list[Example]
    """The examples, in the order of their answers."""

    parts: list[tuple[list[int], Start]]
    """For each batch, which examples it holds (indices) and where their answers start."""


def read_prompts(vlm: "VLM", start: Start) -> Start:
    """Run all but the last position of whole prompts, so that answers start at that position.

    Returns `start` itself where that isn't possible: for a model whose positions aren't plain
    (`PLAIN_POSITIONS`), or prompts that don't end in text. Edits must not be active.
    """
    ids, mask = start.inputs["input_ids"], start.inputs["attention_mask"]
    ends_in_text = bool((start.roles[:, -1] == Role.TEXT).all())
    plain = vlm.model.config.model_type in PLAIN_POSITIONS
    if not plain or ids.shape[1] < 2 or not ends_in_text:
        return start
    before = {
        key: value[:, :-1] if isinstance(value, Tensor) and value.shape == ids.shape else value
        for key, value in start.inputs.items()
    }
    before["position_ids"] = position_ids(mask)[:, :-1]
    cache = start.new_cache(vlm.model.config)
    with torch.no_grad(), vlm.known_roles(start.roles[:, :-1]):
        held = {cache_argument(vlm.model): cache}
        vlm.model(**before, **held, use_cache=True, logits_to_keep=1)
    last = {"input_ids": ids[:, -1:], "attention_mask": mask}
    return Start(last, start.roles[:, -1:], cache)


def first_logits(vlm: "VLM", start: Start) -> Tensor:
    """Logits (B, vocabulary) of the first token of the answers, under the edits active now."""
    step = dict(start.inputs)
    if vlm.model.config.model_type in PLAIN_POSITIONS:
        step["position_ids"] = position_ids(step["attention_mask"])[:, -start.roles.shape[1] :]
        step["logits_to_keep"] = 1
    if start.cache is not None:
        step[cache_argument(vlm.model)] = start.new_cache(vlm.model.config)
    with torch.no_grad(), vlm.known_roles(start.roles):
        return vlm.model(**step, use_cache=start.cache is not None).logits[:, -1]


def _same_tensors(cache: DynamicCache) -> DynamicCache:
    """Another cache over the same tensors: updates and selections put new ones in their place."""
    other = copy(cache)
    other.layers = [copy(layer) for layer in cache.layers]
    return other
