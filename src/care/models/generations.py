"""Calls of `model.generate`, watched while hooks are on: where the prompt of an answer ends.

Within a pass nothing tells the tokens of a prompt from those that follow: lookup and assisted
decoding read guesses of the answer along with the prompt, or several after it, of which some are
thrown away again; a prompt may be read in pieces, or be the second turn of a conversation whose
first is in the cache. The call says how long the prompt is, and that holds for all of its passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from care.errors import SiteError

SAY_ROLES = "say what its positions are, with `with vlm.known_roles(roles):` around the call"
"""What to do where the roles of a pass can't be established."""


@dataclass(eq=False)
class Generation:
    """One call of `model.generate` while it runs."""

    tokens: Tensor | None
    """What it was given (B, T)."""
    mask: Tensor | None
    """The attention mask that it was given (B, T)."""
    length: int
    """Positions of its prompt, with padding and what was cached before."""
    prompt: int
    """The same, but of the answer that this is a draft of if it is one."""
    pad: int | None
    """The token that finished rows are fed; None if it isn't set."""
    caches: Sequence[Any] | None = None
    """What the passes continue from; None before the first."""
    beginning: Tensor | None = None
    """Tokens of the prompt in the first pass (B, T), if there is no cache."""
    read: int = 0
    """Positions that have been read."""

    def owns(self, ids: Tensor, caches: Sequence[Any]) -> bool:
        """Whether a pass over ids (B, T) is one of this call.

        Guidance by another prompt runs the same model in between, with a cache of its own.
        """
        if self.caches is None:
            return True
        if caches or self.caches:
            return any(cache is own for cache in caches for own in self.caches)
        return self.beginning is not None and _continues(ids, self.beginning)

    def advance(self, ids: Tensor, caches: Sequence[Any], past: int | None) -> tuple[int, int]:
        """Take a pass over ids (B, T) after `past` positions, None if the cache doesn't say.

        Returns how many positions are before it, and how many the prompt has. Raises SiteError if
        they can't be established.
        """
        length = ids.shape[1]
        if self.caches is None:
            past = self._begin(length, past)
            self.caches = list(caches)
            self.beginning = None if caches else ids[:, : self.length]
        elif past is None and length == 1:
            past = self.read
        if past is None:
            raise SiteError(
                f"This pass reads {length} tokens and its cache doesn't say after how many, so "
                "their roles are unknown: let the model generate without candidate tokens."
            )
        self.read = past + length
        return past, self.prompt

    def _begin(self, length: int, past: int | None) -> int | None:
        """How many positions are before the first pass, which reaches the end of the prompt."""
        if past is None:
            return 0 if length >= self.length else None
        if past >= self.length:
            raise SiteError(
                f"The cache is said to hold {past} positions before the prompt's last of "
                f"{self.length}: pass the whole attention mask and a cache of an earlier turn, or "
                "none."
            )
        if past + length < self.length:
            raise SiteError(
                f"The prompt is read in pieces ({past + length} of its {self.length} positions so "
                "far), within which its last position can't be told: leave out prefill_chunk_size."
            )
        return past

    def mask_of(self, ids: Tensor, mask: Any) -> Any:
        """The 2-D attention mask of a pass over ids (B, T), if one is known; else `mask`."""
        if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
            return mask
        if self.mask is None or len(ids) % len(self.mask):
            return mask
        rows = self.mask.repeat_interleave(len(ids) // len(self.mask), dim=0)
        return torch.cat([rows, rows.new_ones(len(rows), max(self.read - rows.shape[1], 0))], dim=1)


class _Watched:
    """Stands in for `generate` of a model, and holds the call that is running."""

    def __init__(self, model: Any) -> None:
        self.before = vars(model).get("generate")
        self.generate = model.generate
        self.model = model
        self.running: Generation | None = None
        self.watching = 0
        functools.update_wrapper(self, self.generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.calling(self.generate, *args, **kwargs)

    def calling(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of this `generate`, watched like one of the model's own."""
        outer = self.running
        self.running = _generation(self.model, args, kwargs, outer)
        try:
            return generate(*args, **kwargs)
        finally:
            self.running = outer


def library_generate(model: Any) -> Callable[..., Any]:
    """`model.generate` as transformers wrote it, watched where hooks are on.

    Not one that came with the weights, which transformers puts in the place of the method as a
    partial function.
    """
    found = vars(model).get("generate")
    watch = found if isinstance(found, _Watched) else None
    if not isinstance(found if watch is None else watch.before, functools.partial):
        return model.generate
    plain = functools.partial(type(model).generate, model)
    return plain if watch is None else functools.partial(watch.calling, plain)


@contextmanager
def watched(model: Any) -> Iterator[Callable[[], Generation | None]]:
    """Watch `model.generate` while open; yields a function that tells which call is running."""
    if not callable(getattr(model, "generate", None)):
        yield lambda: None
        return
    watch = vars(model).get("generate")
    if not isinstance(watch, _Watched):
        watch = model.generate = _Watched(model)
    watch.watching += 1
    try:
        yield lambda: watch.running
    finally:
        watch.watching -= 1
        if not watch.watching:  # contexts may be left in any order
            del model.generate
            if watch.before is not None:
                model.generate = watch.before


def _generation(
    model: Any, args: Sequence[Any], kwargs: dict[str, Any], outer: Generation | None
) -> Generation | None:
    """What a call of `generate` says; None if it doesn't say what the prompt is."""
    given = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
    tokens = next((value for value in given if isinstance(value, Tensor)), None)
    mask = kwargs.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    # A mask reaches back over what is in a cache, while the tokens may be the new ones alone.
    whole = tokens if mask is None else mask
    if whole is None or whole.ndim < 2:
        return None
    length = prompt = whole.shape[1]
    if outer is not None and _continues(tokens, outer.tokens):
        prompt = outer.prompt
    configs = (kwargs.get("generation_config"), getattr(model, "generation_config", None))
    pads = [kwargs.get("pad_token_id"), *(getattr(one, "pad_token_id", None) for one in configs)]
    pad = next((pad for pad in pads if isinstance(pad, int)), None)
    return Generation(tokens, mask, length, prompt, pad)


def _continues(tokens: Tensor | None, start: Tensor | None) -> bool:
    """Whether tokens (B, T) go on where others end, as drafts by the same model do."""
    if tokens is None or start is None or tokens.ndim != 2 or start.ndim != 2:
        return False
    return torch.equal(tokens[:, : start.shape[1]], start.to(tokens))
