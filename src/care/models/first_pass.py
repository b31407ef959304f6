"""The pass that decides how answers begin, which is begun again from any layer for each edit.

Prompts that were read leave one position (`prompt_cache`). What the layers return for it with
nothing edited is remembered, L · B · D numbers, and a pass under edits from layer l on computes the
layers l … L − 1 and the head alone: the same operations on the same numbers as a whole pass, so the
same logits to the bit. Where sites are tried one after the other that is most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from care.models.prompt_cache import PromptCache
from care.models.replay import recording, replaced_forwards, replaying
from care.models.sites import Site

if TYPE_CHECKING:
    from care.models.vlm import VLM


class FirstPass:
    """Where the answers to N prompts begin, and what each layer holds there without edits.

    Nothing may be edited when it is made. Of prompts in several batches, or that weren't read
    ahead, nothing is remembered, and every pass is a whole one.
    """

    def __init__(self, vlm: VLM, prompts: PromptCache) -> None:
        self.vlm, self.prompts = vlm, prompts
        self._outputs: list[list[Any]] = []
        if len(prompts.parts) == 1 and prompts.parts[0][1].cache is not None:
            self._outputs = [[] for _ in vlm.anatomy.layers]
        layers = zip(vlm.anatomy.layers, self._outputs, strict=False)
        with replaced_forwards({one: recording(one.forward, kept) for one, kept in layers}):
            self.bare = vlm.refusal_log_odds(prompts)
        if any(len(kept) != 1 for kept in self._outputs):
            self._outputs = []  # memory didn't suffice for one pass

    def log_odds(self, sites: Sequence[Site]) -> np.ndarray:
        """Refusal log-odds (N,) under edits at `sites`, which have to be on."""
        # A layer's whole output is edited after it was computed, and may be a known one.
        start = min(site.layer + (site.kind == "layer_out") for site in sites)
        known = zip(self.vlm.anatomy.layers, self._outputs[:start], strict=False)
        with replaced_forwards({one: replaying(kept, one.forward) for one, kept in known}):
            return self.vlm.refusal_log_odds(self.prompts)
