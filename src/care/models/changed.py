"""Which answers an edit leaves alone, told by the one position that it acts on.

An edit of the last position of a prompt alone changes an answer only through that position. Where
no site there holds another activation with it than without it, so do keys, values and logits, and
the answer is the unedited model's, to the bit. That is seen in one pass over that position. A site
after one that was edited sees what it was left: a row counts as changed by the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from care.models.hooks import read
from care.models.memory import out_of_memory
from care.models.prompt_cache import PromptCache, first_logits
from care.models.sites import Site

if TYPE_CHECKING:
    from care.models.vlm import VLM


def changed_rows(
    vlm: VLM, prompts: PromptCache, sites: Sequence[Site], editing: AbstractContextManager[Any]
) -> np.ndarray:
    """Which of N prompts that were read have an activation changed at `sites`, (N,) of bool.

    `editing` is the context in which the edits are on. What doesn't fit into memory counts as
    changed.
    """
    changed = np.ones(len(prompts.examples), dtype=bool)
    # Hooks run in the order of entry: the first reading is of what the edits are given.
    with read(vlm, sites) as before, editing, read(vlm, sites) as after:
        for indices, start in prompts.parts:
            try:
                first_logits(vlm.model, vlm.roles, start)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                continue
            each = [_differ(before[site][0], after[site][0]) for site in sites]
            changed[indices] = torch.stack(each).any(dim=0).cpu().numpy()
    return changed


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Rows (B,) in which two activations (B, T, D) differ anywhere; NaN differs from everything."""
    return (one != other).flatten(1).any(dim=1)
