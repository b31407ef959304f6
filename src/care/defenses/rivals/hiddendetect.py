"""HiddenDetect as a gate: a request that the layers within are about to refuse is refused.

At the last token of a prompt every layer l is read as if it were the last (logit lens), and
compared with a vector r that is one at tokens which refusals use:

    F_l = cos( W_U norm(h_l), r ),     s = Σ_l (F_l + F_{l+1}) / 2 over the layers of a range

which is the area under F by the trapezoid rule. Requests with s above a threshold are refused.

Jiang et al. 2025, arXiv 2502.14744 (layers 16 to 29 of 32 of LLaVA). It is a detector; what follows
a detection had to be chosen. So were the words of refusals, of which the first token counts, with
and without a space before it, where the paper takes them from the model's refusals; the range is
the published share of depth, not found anew for each model; and the threshold is what at most a
share of benign requests exceed, where the paper compares by the area under a ROC curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from care.data.example import Example, Suite
from care.defenses.activations import pool, pooled_activations
from care.defenses.asking import BATCH_SIZE, Gated
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.steering import at_least, layers_between
from care.defenses.stored import StoredDefense, fitted_on
from care.errors import FitError, ModelError, UsageError
from care.models.blocks import final_norm
from care.models.devices import device_of
from care.models.loading import first_tokens
from care.models.responses import Answer, refusal
from care.models.sites import Site
from care.models.vlm import VLM

WORDS = ("sorry", "cannot", "unable", "unfortunately", "illegal", "harmful", "refuse", "decline")
"""Words of refusals, whose capitals are looked at too."""


@register("hiddendetect")
@dataclass(frozen=True, eq=False, kw_only=True)
class HiddenDetect(Gated, StoredDefense):
    """Requests are refused in which late layers read like a refusal before anything is said."""

    paper: ClassVar[str] = "Jiang et al. 2025, 2502.14744"
    cost: ClassVar[Cost] = Cost(forwards=1, needs=("benign requests",))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depths": ((17 / 32, 30 / 32), (0.25, 30 / 32), (0.75, 1.0)),
        "false_alarms": (0.01, 0.05, 0.1, 0.2),
    }

    layers: tuple[int, ...]
    """The range, in order."""
    tokens: tuple[int, ...]
    """Where r is one."""
    threshold: float
    """What s of a refused request is above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layers) < 2 or not self.tokens:
            raise UsageError(
                "HiddenDetect needs two layers or more, to have an area over them, and a token of "
                f"refusals; got {len(self.layers)} and {len(self.tokens)}."
            )

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        depths: tuple[float, float] = (17 / 32, 30 / 32),
        false_alarms: float = 0.05,
        batch_size: int = BATCH_SIZE,
    ) -> Self:
        """Set the threshold so that at most a share of the benign requests is refused."""
        benign = list(benign)
        at_least(1, benign, "benign requests")
        if not 0 <= false_alarms < 1:
            raise UsageError(f"false_alarms must lie in [0, 1), got {false_alarms!r:.40}.")
        layers = layers_between(vlm, depths)
        if len(layers) < 2:
            raise FitError(
                f"the depths {depths} are a single one of the {vlm.anatomy.n_layers} layers of "
                f"{vlm.name}, and an area needs two or more; give depths that are further apart"
            )
        tokens = first_tokens(vlm.tokenizer, [*WORDS, *(word.capitalize() for word in WORDS)])
        scores = np.sort(refusal_areas(vlm, benign, layers, tokens, batch_size))[::-1]
        return cls(
            layers=layers,
            tokens=tuple(tokens),
            threshold=float(scores[int(false_alarms * len(scores) + 1e-9)]),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )

    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Which requests are refused."""
        self.check(vlm)
        areas = refusal_areas(vlm, examples, self.layers, self.tokens, batch_size)
        return areas > self.threshold

    def guarded(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Refusals."""
        return [refusal() for _ in examples]


def refusal_areas(
    vlm: VLM,
    examples: Sequence[Example],
    layers: Sequence[int],
    tokens: Sequence[int],
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """s of N requests (N,)."""
    sites = [Site(layer, "layer_out") for layer in layers]
    found = pooled_activations(
        vlm, examples, sites, lambda h, roles: pool(h, roles, "decision"), batch_size=batch_size
    )
    return np.trapezoid([nearness(vlm, found[site], tokens) for site in sites], axis=0)


@torch.no_grad()
def nearness(vlm: VLM, rows: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """F (N,) of activations (N, D) after one layer; ModelError without a final norm."""
    norm, head = final_norm(vlm.anatomy.decoder), vlm.model.get_output_embeddings()
    if norm is None:
        raise ModelError(
            f"{vlm.name} has no final norm of a known name in its decoder, so its layers can't be "
            "read as logits; use another defense."
        )
    h = torch.from_numpy(rows).to(device_of(norm, vlm.model), vlm.dtype)
    logits = head(norm(h).to(device_of(head, vlm.model))).float()
    along = logits[:, list(tokens)].sum(dim=1) / len(tokens) ** 0.5
    return (along / torch.linalg.vector_norm(logits, dim=1)).cpu().numpy()
