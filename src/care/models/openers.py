"""Beginnings of refusals that a model says, and whether they are counted.

The refusal log-odds look at a few tokens (`VLM.refusal_ids`). Where a model begins its refusals
with another token that reads the same, they stay finite and measure nothing; that is warned of.
"""

import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

REFUSAL_OPENERS = ("I", "Sorry", "As", "Unfortunately")
"""First words of refusals; their first tokens form R of the refusal log-odds (Arditi et al. 2024,
who use "I" and "As", plus two openers of the models tested here)."""

LIKELY = 0.1
"""Least probability of a first token that is looked at."""

_OPENS = re.compile(rf"\s*(?:{'|'.join(REFUSAL_OPENERS)})\b", re.IGNORECASE)
_LOOKED_AT = 3


class Uncounted:
    """Warns once of each token that reads like an opener and isn't among those counted."""

    def __init__(self, tokenizer: Any, name: str, found: Collection[int]) -> None:
        """`found` are the tokens of `REFUSAL_OPENERS`."""
        self._tokenizer, self._name = tokenizer, name
        self._found = frozenset(found)
        self._seen = set(found)

    def look(self, logits: Tensor, counted: Collection[int]) -> None:
        """At the likely first tokens of logits (B, vocabulary); `counted` are those of R now."""
        if not self._found.issubset(counted):
            return  # somebody has chosen others
        logits = logits.detach().float()
        highest, tokens = logits.topk(min(_LOOKED_AT, logits.shape[-1]), dim=-1)
        likely = (highest - logits.logsumexp(-1, keepdim=True)).exp() >= LIKELY
        for token in sorted(set(tokens[likely].tolist()) - self._seen.union(counted)):
            self._seen.add(token)
            said = self._tokenizer.decode([token])
            if _OPENS.match(said):
                warnings.warn(
                    f"{self._name} begins answers with {said!r} (token {token}), which reads like "
                    "a refusal but isn't counted as one; add it to refusal_ids.",
                    stacklevel=3,
                )


def log_odds(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """log P − log(1 − P) (…) that the next token is one of `ids`, of logits (…, vocabulary)."""
    counted = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    counted[list(ids)] = True
    logits = logits.float()
    return logits[..., counted].logsumexp(-1) - logits[..., ~counted].logsumexp(-1)
