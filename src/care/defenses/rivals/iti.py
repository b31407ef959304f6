"""ITI: the heads of attention that know best whether an answer will refuse are moved towards it.

For each head, with its output z at the last token of malicious prompts, refused or complied with,

    a probe (logistic regression) is fitted, and its accuracy taken on held-out requests
    θ = (μ_refused − μ_complied) / ‖·‖,      σ the standard deviation of θᵀ z
    z' = z + a σ θ in the K heads with the best accuracy, from the last token of a prompt on.

Li et al. 2023, arXiv 2306.03341 (section 3): K = 48 of 1024 heads, a = 15 for LLaMA-7B; the mass
mean shift as θ; attention's output is x + Σ Q (z + a σ θ), so the shift is added as Q a σ θ here.

Deviations: where the paper has true and false answers at their last token, here are requests that
the model refuses and ones that it complies with, at the last token of the prompt, since the words
of a refusal tell it from anything, in any head. K is a share of all heads (48 / 1024); every fifth
request is held out for the probes; of equal accuracies the likelier held-out labels are better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from care.data.example import Example, Suite
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Material, gather
from care.defenses.steering import Steering, at_least
from care.defenses.stored import fitted_on
from care.errors import FitError
from care.models import blocks
from care.models.devices import weight_of
from care.models.hooks import hooked
from care.models.passes import Pass
from care.models.sites import SiteKind
from care.models.vlm import VLM

SHARE = 48 / 1024
"""Of the heads."""


@register("iti")
@dataclass(frozen=True, eq=False, kw_only=True)
class HeadSteering(Steering):
    """The heads that know best whether an answer will refuse are shifted towards refusing."""

    paper: ClassVar[str] = "Li et al. 2023, 2306.03341"
    cost: ClassVar[Cost] = Cost(needs=("attacks that worked", "refusals"))
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "share": (0.02, SHARE, 0.1, 0.2),
        "strength": (0.5, 1.0, 2.5, 5.0, 10.0, 15.0),
    }
    kind: ClassVar[SiteKind] = "mhsa_out"

    direction: np.ndarray
    """Σ Q σ θ over the heads of each layer (L, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + a Σ Q σ θ."""
        return h + self.strength * self.number("direction", h)[place]

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        share: float = SHARE,
        strength: float = 15.0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known."""
        projections(vlm)  # refuses before anything is asked
        material = material or gather(vlm, list(attacks), list(benign))
        parts = material.refused, material.complied
        for part, what in zip(parts, ("refused requests", "attacks that worked"), strict=True):
            at_least(4, part, f"{what}, to fit probes and to hold out,")
        refused, complied = (
            head_outputs(vlm, [example for example, _ in part], batch_size) for part in parts
        )
        accuracy, likelihood = probed(refused, complied)
        count = max(round(share * accuracy.size), 1)
        best = np.lexsort((-likelihood.ravel(), -accuracy.ravel()))[:count]
        shifts = np.zeros((*accuracy.shape, refused.shape[-1]))
        for place in best:
            layer, head = np.unravel_index(place, accuracy.shape)
            shifts[layer, head] = shift(refused[:, layer, head], complied[:, layer, head])
        layers = tuple(int(layer) for layer in np.flatnonzero(shifts.any(axis=(1, 2))))
        weights = projections(vlm)
        return cls(
            layers=layers,
            strength=strength,
            direction=np.array(
                [
                    weight_of(weights[layer]).detach().double().cpu().numpy()
                    @ shifts[layer].ravel()
                    for layer in layers
                ]
            ),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def projections(vlm: VLM) -> list[nn.Module]:
    """Q of each layer, which takes the outputs of all heads in a row; FitError without one."""
    found = []
    for site in vlm.anatomy.sites("mhsa_out"):
        attention = blocks.mixer(vlm.anatomy.layers[site.layer])
        projection = getattr(attention, "o_proj", None)
        if projection is None or vlm.anatomy.module(site) is not attention:
            raise FitError(
                f"{vlm.name} adds something else to the residual stream than the projection of its "
                "heads, so no shift of a head can be told; use a defense of whole layers"
            )
        found.append(projection)
    return found


def head_outputs(vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
    """z (N, L, heads, D / heads) at the last token of each prompt."""
    asked = [replace(example, opening="") for example in examples]
    modules, sites = projections(vlm), vlm.anatomy.sites("mhsa_out")
    heads = int(vlm.model.config.get_text_config().num_attention_heads)

    def work(chunk: list[int]) -> list[np.ndarray]:
        found: dict[int, Tensor] = {}

        def keeping(layer: int):
            def visit(h: Tensor, context: Pass) -> None:
                found[layer] = context.inputs[modules[layer]][:, -1].float().cpu()

            return visit

        visits = {site: keeping(site.layer) for site in sites}
        with hooked(vlm, visits, inputs=modules):
            vlm.forward(vlm.batch([asked[i] for i in chunk]), logits_to_keep=1)
        rows = torch.stack([found[site.layer] for site in sites], dim=1)
        return list(rows.unflatten(-1, (heads, -1)).numpy())

    return np.array(vlm.in_batches(asked, batch_size, work))


def probed(refused: np.ndarray, complied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean log-likelihood (L, heads) of a probe of each head, on every fifth row."""
    rows = np.concatenate([refused, complied])
    labels = np.arange(len(rows)) < len(refused)
    held = np.concatenate([np.arange(len(part)) for part in (refused, complied)]) % 5 == 1
    accuracy, likelihood = (np.zeros(rows.shape[1:3]) for _ in range(2))
    for layer, head in np.ndindex(accuracy.shape):
        z = rows[:, layer, head]
        probe = LogisticRegression(max_iter=1000).fit(z[~held], labels[~held])
        signed = np.where(labels[held], 1, -1) * probe.decision_function(z[held])
        accuracy[layer, head] = (signed > 0).mean()
        likelihood[layer, head] = -np.logaddexp(0, -signed).mean()
    return accuracy, likelihood


def shift(refused: np.ndarray, complied: np.ndarray) -> np.ndarray:
    """σ θ (D / heads,) of one head's outputs (N, D / heads) and (M, D / heads)."""
    apart = refused.mean(axis=0, dtype=np.float64) - complied.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(apart)
    if not length > 0:
        return np.zeros_like(apart)
    along = np.concatenate([refused, complied]) @ (apart / length)
    return along.std() * apart / length
