"""Perplexity of texts under a causal language model: exp of the mean negative log-likelihood.

The first token has no context and isn't counted. High perplexity marks text that no fluent speaker
would write; it says nothing about truth or harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_BATCH = 32


@torch.no_grad()
def perplexities(model: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Mean perplexities (N,) of `texts`; the same text is scored once, NaN for a single token."""
    different = list(dict.fromkeys(texts))
    found: dict[str, float] = {}
    for start in range(0, len(different), _BATCH):
        chunk = different[start : start + _BATCH]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in chunk]
        width = max(2, *map(len, ids))
        batch = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        logits = model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2).float(), batch[:, 1:], reduction="none"
        )
        counted = mask[:, 1:]
        means = (losses * counted).sum(1) / counted.sum(1)
        found |= dict(zip(chunk, means.exp().tolist(), strict=True))
    return np.array([found[text] for text in texts])
