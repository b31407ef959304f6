"""Key-value caches of the model's library, whatever their argument is called.

A forward pass that continues from a cache means something else than one that reads a prompt, and
what the argument is called has changed between releases (`past_key_values`, then `cache`). So a
cache is known here by what it can do: it says how many positions it holds.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

NAMES = ("cache", "past_key_values")
"""What the argument is called, the newest name first."""

_PLAIN = (Tensor, bool, int, float, str, bytes, type(None))


def cache_argument(model: Any) -> str:
    """The name under which the forward pass of `model` takes a cache."""
    # A wrapper that takes anything hands it on to a model of the library that is installed.
    library: Any = GenerationMixin
    for function in (model.forward, library.prepare_inputs_for_generation):
        taken = inspect.signature(function).parameters
        for name in NAMES:
            if name in taken:
                return name
    return NAMES[0]


def caches_in(values: Iterable[Any]) -> list[Any]:
    """Every cache among some arguments, also within lists, tuples and mappings."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, _PLAIN):
            continue
        if callable(getattr(value, "get_seq_length", None)):
            found.append(value)
        elif isinstance(value, Mapping):
            found += caches_in(value.values())
        elif isinstance(value, (list, tuple)):
            found += caches_in(value)
    return found


def cached_positions(caches: Iterable[Any]) -> int | None:
    """How many positions were read before; None if the caches don't say, or don't agree.

    To be asked before the model runs, which adds to them.
    """
    try:
        lengths = {int(cache.get_seq_length()) for cache in caches}
    except (TypeError, ValueError, LookupError, AttributeError, NotImplementedError):
        return None  # a cache of states, say, which has no length
    return lengths.pop() if len(lengths) == 1 else None


def may_hold_state(values: Iterable[Any]) -> bool:
    """Whether one of some arguments could be what an earlier pass left, in a form unknown here.

    That is any object but a tensor, a number or text, and tuples of tuples of tensors, which were
    the caches of old.
    """
    for value in values:
        if isinstance(value, _PLAIN) or type(value).__module__ in ("torch", "numpy"):
            continue
        if isinstance(value, Mapping):
            value = tuple(value.values())
        elif not isinstance(value, (list, tuple)) or any(isinstance(v, tuple) for v in value):
            return True
        if may_hold_state(value):
            return True
    return False
