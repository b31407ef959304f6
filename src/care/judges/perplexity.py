"""Perplexity of texts under a causal language model: exp of the mean negative log-likelihood.

    perplexity(x) = exp( −1/(T−1) · Σ_{t=2..T} log p(x_t | x_1 … x_{t−1}) )

The first token has no context and isn't counted. High perplexity marks text that no fluent speaker
would write; it says nothing about truth or harm. A loop has a *low* perplexity: that is what the
rules of `coherence` are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from care.judges.rules import Perplexity
from care.models.finite import check_logits
from care.models.memory import in_halves

MAX_PERPLEXITY = 200.0
"""Above this an answer of `care.judges.rules.FEWEST_WORDS` words or more is broken text.

For the untouched text model of the embedded one, measured in bfloat16 on its answers to benign
requests (`python -m tools.judges calibrate RUN/rows.jsonl` in a checkout):

| answers | n | median | above 200 |
|---|---|---|---|
| good, 12 words or more | 312 | 14 (99 %: 46, greatest: 65) | 0 |
| good, cut to 16 / 12 / 10 / 8 / 5 words | 96 / 100 … | | 0 / 1 / 3 / 7 / 63 % |
| words shuffled | 100 | 2,600 | 100 % |
| tokens shuffled | 100 | 5,100 | 100 % |
| words drawn from the 50 most frequent | 100 | 2,100 | 100 % |
| tokens drawn from the vocabulary | 100 | 2,100,000 | 99 % (one has too few words) |
| three words in a loop | 100 | 16 | 1 % (the rules of `coherence` find 100 %) |
| an edit at strength 8: loops of syllables | 32 | 540 | too few words (the rules: 100 %) |
| the same at strength 3: sentences with odd words in them | 32 | 19 | 0 (the rules: 6 %) |

The least limit with at most 1 % false alarms on one half of the goals is 40, but 3 % of the other
half lie above it; 200 leaves room for other requests and still finds all shuffled text. A sound
sentence with a made-up word ("a piflcan") stays below every limit of use.
"""

_BATCH = 32


@torch.no_grad()
def perplexities(model: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Perplexities (N,) of `texts`; the same text is scored once, NaN below two tokens.

    Raises NotFiniteError where the model computes NaN or infinity: that says nothing of the text.
    """
    # By length, so that a batch holds little padding.
    different = sorted(dict.fromkeys(texts), key=len)

    def work(chunk: Sequence[str]) -> list[float]:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in chunk]
        width = max(2, *map(len, ids))
        batch = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        batch, mask = batch.to(model.device), mask.to(model.device)
        logits = model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, :-1]
        check_logits(logits, getattr(model, "name_or_path", ""), mask[:, 1:].bool())
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2).float(), batch[:, 1:], reduction="none"
        )
        counted = mask[:, 1:]
        return ((losses * counted).sum(1) / counted.sum(1)).exp().tolist()

    found = dict(zip(different, in_halves(different, _BATCH, work), strict=True))
    return np.array([found[text] for text in texts])


def of_embedded_model(dtype: str = "auto") -> Perplexity:
    """Perplexity under the untouched text model of the embedded one, for which `MAX_PERPLEXITY` is
    measured; the first call assembles it."""
    from care.models.embedded.cache import base_text_model

    return partial(perplexities, *base_text_model(dtype))
