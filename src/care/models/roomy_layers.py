"""Layers of a key-value cache that grow into room behind them.

The library's own makes a new tensor of everything at each token, which reads and writes all keys
and values of a batch to add one position. Here a step writes that position alone, into a buffer
with room for `ROOM` more; when that is used up, or rows were dropped, the next step makes another.
What the model reads are the same numbers. Not here: layers of other kinds (sliding windows), which
stay the library's.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Positions kept free in a new buffer: more make copies rarer and memory larger."""


class RoomyLayer(DynamicLayer):
    """One layer; what it holds is a view of its buffer, where it has one.

    A copy (`copy.copy`) shares what is held and no buffer, so it never writes into the other's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._buffers: list[Tensor | None] = [None, None]

    def __copy__(self) -> Self:
        other = type(self)()
        vars(other).update({**vars(self), "_buffers": [None, None]})
        return other

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T + t, C) after t more positions.

        The first are held as they come: prompts that are only read take no room.
        """
        keys, values = self.keys, self.values
        if keys is None or values is None or not keys.numel() or torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = (
            self._grown(0, keys, key_states),
            self._grown(1, values, value_states),
        )
        return self.keys, self.values

    def _grown(self, place: int, held: Tensor, more: Tensor) -> Tensor:
        length, buffer = held.shape[-2], self._buffers[place]
        total = length + more.shape[-2]
        if buffer is None or held._base is not buffer or total > buffer.shape[-2]:
            buffer = held.new_empty((*held.shape[:-2], total + ROOM, held.shape[-1]))
            buffer[..., :length, :] = held
            self._buffers[place] = buffer
        buffer[..., length:total, :] = more
        return buffer[..., :total, :]


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration, roomy where its layers are plain."""
    cache = DynamicCache(config=config.get_text_config())
    cache.layers = [RoomyLayer() if type(each) is DynamicLayer else each for each in cache.layers]
    return cache
