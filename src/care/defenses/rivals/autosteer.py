"""AutoSteer: where a probe takes a request for harmful, a learned matrix makes its answer refuse.

    layer    the one with the greatest safety awareness score, of every fourth: the mean cosine of
             the differences h(harmful_i) − h(harmless_i) of all two pairs
    probe    an MLP, D to 64 to harmful or not, of the last token of the prompt at that layer
    head     h' = h + ε W h before the output head, while P(harmful) > 0.5; W (D, D) maximises the
             likelihood of refusals as answers to attacks that worked

Wu et al. 2025, arXiv 2507.13255: the probe 3584-64-2 at layer 20 of 28 as the score finds it, ε
about 0.1, the model frozen.

What had to be chosen: W is applied to the output of the last layer, before its norm, from the last
token of the prompt on; it begins at 0 and is made by Adam in `steps` steps on the model's own
refusals, at a rate of 0.01 · 576/D for each entry: a step moves all D² of them alike, so what it
does to an activation, relative to its length, grows with the width unless the rate falls. Probes
see harmful requests, whether they work or not, and answered benign ones, each coordinate divided by
its standard deviation; pairs are made in turn. The probe is a pass of its own here, up to its
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.activations import at_decision
from care.defenses.asking import Gated
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.likelihood import logprobs, loss_value
from care.defenses.material import Material, decision_rows, gather
from care.defenses.steering import ANSWERING, Steering, at_least
from care.defenses.stored import fitted_on
from care.models.gradients import differentiable
from care.models.hooks import edit
from care.models.sites import Site, scope_mask
from care.models.vlm import VLM

HIDDEN = 64
"""Units of the probe."""

EVERY = 4
"""One layer in so many is a candidate."""

RATED_WIDTH = 576
"""D at which the rate of W is as it is given."""


@register("autosteer")
@dataclass(frozen=True, eq=False, kw_only=True)
class AutoSteer(Gated, Steering):
    """A learned matrix makes answers refuse where a probe takes the request for harmful."""

    paper: ClassVar[str] = "Wu et al. 2025, 2507.13255"
    cost: ClassVar[Cost] = Cost(
        forwards=0.7, trains=True, needs=("attacks that worked", "refusals", "benign requests")
    )
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "strength": (0.05, 0.1, 0.2),
        "threshold": (0.5, 0.7, 0.9, 0.99),
    }
    unfitted: ClassVar[tuple[str, ...]] = ("threshold",)

    matrix: np.ndarray
    """W (1, D, D)."""
    first: np.ndarray
    """Weights of the probe's first layer (64, D)."""
    first_bias: np.ndarray
    """Its bias (64,)."""
    second: np.ndarray
    """Weights of the second (64,)."""
    second_bias: np.ndarray
    """Its bias (1,)."""
    probe_layer: int
    """Where the probe reads."""
    threshold: float = 0.5
    """P(harmful) above which it steers."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h + ε W h."""
        return h + self.strength * h @ self.number("matrix", h)[place].T

    def opened(self, vlm: VLM, examples: Sequence[Example], batch_size: int) -> np.ndarray:
        """Requests that the probe takes for harmful (N,)."""
        if self.strength == 0:
            return np.zeros(len(examples), dtype=bool)
        self.check(vlm)
        site = Site(self.probe_layer, "layer_out")
        return self.harmful(at_decision(vlm, examples, [site], batch_size)[site]) > self.threshold

    def harmful(self, rows: np.ndarray) -> np.ndarray:
        """P(harmful) (N,) of activations (N, D)."""
        hidden = np.maximum(rows.astype(np.float64) @ self.first.T + self.first_bias, 0)
        return 1 / (1 + np.exp(-np.clip(hidden @ self.second + self.second_bias, -60, 60)))

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        strength: float = 0.1,
        threshold: float = 0.5,
        steps: int = 60,
        rate: float = 0.01,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known.

        W is trained in `steps` steps of Adam at `rate` · 576/D, at strength ε = 0.1 or the one
        that is given, if it isn't 0.
        """
        material = material or gather(vlm, list(attacks), list(benign))
        at_least(2, material.answered, "answered benign requests")
        sites = vlm.anatomy.sites("layer_out")[EVERY - 1 :: EVERY] or [Site(0, "layer_out")]
        found = decision_rows(vlm, material, sites, batch_size)
        classes = {site: (np.concatenate(rows[:2]), rows[2]) for site, rows in found.items()}
        site = max(sites, key=lambda each: awareness(*classes[each]))
        told = probe(*classes[site], seed)
        matrix = refusal_matrix(vlm, material, strength or 0.1, steps, rate, seed, batch_size)
        return cls(
            layers=(vlm.anatomy.n_layers - 1,),
            strength=strength,
            threshold=threshold,
            matrix=matrix[None],
            probe_layer=site.layer,
            first=told.first,
            first_bias=told.first_bias,
            second=told.second,
            second_bias=told.second_bias,
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def awareness(harmful: np.ndarray, harmless: np.ndarray) -> float:
    """Mean cosine of all two of the differences (N, D) of harmful from harmless, paired in turn."""
    apart = harmful.astype(np.float64) - harmless[np.arange(len(harmful)) % len(harmless)]
    lengths = np.linalg.norm(apart, axis=1, keepdims=True)
    units = np.divide(apart, lengths, out=np.zeros_like(apart), where=lengths > 0)
    count, total = len(units), units.sum(axis=0)
    return float((total @ total - (units**2).sum()) / max(count * (count - 1), 1))


class Probe(NamedTuple):
    """The numbers of a probe."""

    first: np.ndarray
    first_bias: np.ndarray
    second: np.ndarray
    second_bias: np.ndarray


def probe(harmful: np.ndarray, harmless: np.ndarray, seed: int) -> Probe:
    """A probe of harmful (N, D) against harmless (M, D) activations."""
    rows = np.concatenate([harmful, harmless]).astype(np.float64)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    labels = np.arange(len(rows)) < len(harmful)
    made = MLPClassifier((HIDDEN,), max_iter=500, random_state=seed, tol=1e-3)
    made.fit((rows - mean) / spread, labels)
    first = made.coefs_[0].T / spread
    bias = made.intercepts_[0] - first @ mean
    return Probe(first, bias, made.coefs_[1][:, 0], made.intercepts_[1])


def refusal_matrix(
    vlm: VLM,
    material: Material,
    strength: float,
    steps: int,
    rate: float,
    seed: int,
    batch_size: int,
) -> np.ndarray:
    """W (D, D) under which attacks that worked are refused; FitError where a loss isn't finite."""
    asked = [example for example, _ in material.complied]
    rng, width = np.random.default_rng(seed), vlm.anatomy.width
    matrix = torch.zeros(width, width, device=vlm.device, requires_grad=True)
    adam = torch.optim.Adam([matrix], lr=rate * (RATED_WIDTH / width))

    def refusing(h: Tensor, roles: Tensor) -> Tensor:
        new = h.float() + strength * h.float() @ matrix.to(h.device).T
        return torch.where(scope_mask(roles, ANSWERING)[..., None], new.to(h), h)

    last = Site(vlm.anatomy.n_layers - 1, "layer_out")
    with differentiable(vlm), edit(vlm, {last: refusing}):
        for step in range(steps):
            places = rng.permutation(len(asked))[:batch_size]
            found, counts = logprobs(
                vlm, [asked[i] for i in places], [material.refusing[i] for i in places]
            )
            loss = -(found / counts).mean()
            loss_value(loss, step, rate)
            adam.zero_grad()
            loss.backward()
            adam.step()
    return matrix.detach().cpu().numpy()
