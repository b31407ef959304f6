"""ASTRA: steering away from what adversarial pictures do, by as far as an activation points there.

Which patches of a picture make an attack work is found by random masks: with kept patches m_i
(each with probability ½, the others black) and y_i = log p − log(1 − p) of the forced beginning
"Sure," of an answer, scores are the coefficients of a Lasso of y on the standardised masks. Then

    v  = mean over pictures of [ h(picture) − h(picture without its harmful patches) ]
    h₀ = mean over clean pictures of h̄ over the answer to "What is the image about?"
    h' = h − a · clip(cos(h − h₀, v), 0, 1) · ‖h‖ · v / ‖v‖

with h(·) at the last token of a prompt without words, at one layer, and the edit at the last
position of each pass alone. Wang, Wang, Zhang 2025, arXiv 2411.16721; settings as published: 64
masks of 14 × 14 patches, Lasso 0.01, the 15 patches with scores above 1e-4, 16 pictures three times
each, layer 20 of 40, a = 10 for LLaVA (7 and 5 for others).

Deviations: the pictures are those of attacks that worked, each with its own request while it is
masked, where the paper has universal pictures without instructions; y is of the probability of the
whole beginning, not divided by its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import Lasso
from torch import Tensor

from care.data.digests import picture_digests
from care.data.example import Example, Suite
from care.defenses.activations import at_decision, pool, pooled_activations
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.material import Material, gather
from care.defenses.steering import Steering, at_least, layer_at, unit
from care.defenses.stored import fitted_on
from care.errors import FitError
from care.models.sites import Site
from care.models.vlm import VLM

BEGINNING = "Sure,"
"""Of the answer whose likelihood tells how well an attack works."""

QUESTION = "What is the image about?"
"""Asked of clean pictures."""

PENALTY, LEAST_SCORE, PATCHES = 0.01, 1e-4, 15
"""Of the Lasso; least score of a harmful patch, and most of them in a picture."""

ANSWER_TOKENS = 32
"""Of an answer about a clean picture."""


@register("astra")
@dataclass(frozen=True, eq=False, kw_only=True)
class Astra(Steering):
    """Activations are steered away from what the harmful patches of adversarial pictures add."""

    paper: ClassVar[str] = "Wang et al. 2025, 2411.16721"
    cost: ClassVar[Cost] = Cost(
        needs=("attacks that worked", "pictures of attacks", "pictures of benign requests")
    )
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "depth": (0.3, 0.5, 0.7, 0.9),
        "strength": (2.0, 5.0, 7.0, 10.0),
    }

    direction: np.ndarray
    """v / ‖v‖ (1, D)."""
    calibration: np.ndarray
    """h₀ (1, D)."""

    def moved(self, h: Tensor, place: int) -> Tensor:
        """h − a clip(cos(h − h₀, v), 0, 1) ‖h‖ v / ‖v‖."""
        direction = self.number("direction", h)[place]
        apart = h - self.number("calibration", h)[place]
        along = torch.nn.functional.cosine_similarity(apart, direction, dim=-1).clamp(0, 1)
        length = torch.linalg.vector_norm(h, dim=-1)
        return h - self.strength * (along * length)[..., None] * direction

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        depth: float = 0.5,
        strength: float = 10.0,
        pictures: int = 16,
        draws: int = 3,
        masks: int = 64,
        grid: int = 14,
        seed: int = 0,
        batch_size: int = 16,
    ) -> Self:
        """Fit on requests; `material` is what they were answered, where that is known.

        `pictures` are taken at most, each attributed `draws` times with `masks` masks of a grid of
        `grid` × `grid` patches.
        """
        material = material or gather(vlm, list(attacks), list(benign))
        bad, clean = (
            pictured((example for example, _ in part), pictures)
            for part in (material.complied, material.answered)
        )
        at_least(1, bad, "attacks that worked and come with a picture")
        at_least(1, clean, "benign requests that were answered and come with a picture")
        layer, rng = layer_at(vlm, depth), np.random.default_rng(seed)
        whole: list[Example] = []
        without: list[Example] = []
        for example in [each for each in bad for _ in range(draws)]:
            harmful = harmful_patches(vlm, example, masks, grid, rng, batch_size)
            if harmful.any():
                whole.append(_worded(example, ""))
                without.append(_worded(blackened(example, ~harmful, grid), ""))
        if not without:
            raise FitError(
                f"no patch of {len(bad)} pictures makes an attack work, so there is nothing to "
                "steer away from; pass attacks whose pictures carry them"
            )
        site = Site(layer, "layer_out")
        first, second = (
            at_decision(vlm, part, [site], batch_size)[site] for part in (whole, without)
        )
        return cls(
            layers=(layer,),
            strength=strength,
            direction=unit((first - second).mean(axis=0, keepdims=True, dtype=np.float64)),
            calibration=_calibration(vlm, clean, site, batch_size),
            manifest=fitted_on(vlm, [*attacks, *benign]),
        )


def harmful_patches(
    vlm: VLM,
    example: Example,
    masks: int,
    grid: int,
    rng: np.random.Generator,
    batch_size: int = 16,
) -> np.ndarray:
    """Which of the patches (grid²,) of an attack's picture make it work."""
    kept = rng.random((masks, grid * grid)) < 0.5
    asked = [
        replace(blackened(example, row, grid), id=f"{example.id}-{place}")
        for place, row in enumerate(kept)
    ]
    likely = vlm.score(asked, [BEGINNING] * masks, batch_size).logprob
    scores = attributions(kept, log_odds(likely))
    best = np.argsort(-scores, kind="stable")[:PATCHES]
    harmful = np.zeros(len(scores), dtype=bool)
    harmful[best[scores[best] > LEAST_SCORE]] = True
    return harmful


def attributions(kept: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Scores (P,) of patches from masks (M, P) of bool and what was measured under them (M,)."""
    spread = kept.std(axis=0)
    scaled = (kept - kept.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return Lasso(alpha=PENALTY, max_iter=10_000).fit(scaled, y).coef_


def log_odds(logprob: np.ndarray) -> np.ndarray:
    """log p − log(1 − p) of log-likelihoods (N,); finite also where p is 1."""
    return logprob - np.log(-np.expm1(np.minimum(logprob, -1e-9)))


def blackened(example: Example, kept: np.ndarray, grid: int) -> Example:
    """The example with every patch of its pictures black that isn't kept (grid²,)."""
    images = []
    for image in example.load_images():
        pixels = np.array(image.convert("RGB"))
        rows, columns = (
            np.minimum(np.arange(size) * grid // size, grid - 1) for size in pixels.shape[:2]
        )
        pixels[~kept.reshape(grid, grid)[rows][:, columns]] = 0
        images.append(Image.fromarray(pixels))
    return replace(example, images=tuple(images))


def pictured(examples: Iterable[Example], most: int) -> list[Example]:
    """The first examples with pictures, each different picture once."""
    found: dict[tuple[str, ...], Example] = {}
    for example in examples:
        if example.images:
            found.setdefault(picture_digests(example), example)
    return list(found.values())[:most]


def _calibration(vlm: VLM, clean: list[Example], site: Site, batch_size: int) -> np.ndarray:
    """h₀ (1, D)."""
    asked = [_worded(example, QUESTION) for example in clean]
    answers = vlm.generate(asked, max_new_tokens=ANSWER_TOKENS, batch_size=batch_size)
    said = [(example, answer) for example, answer in zip(asked, answers, strict=True) if answer]
    at_least(1, said, "answers about clean pictures that aren't empty")
    rows = pooled_activations(
        vlm,
        [example for example, _ in said],
        [site],
        lambda h, roles: pool(h, roles, "response"),
        answers=[answer for _, answer in said],
        batch_size=batch_size,
    )[site]
    return rows.mean(axis=0, keepdims=True, dtype=np.float64)


def _worded(example: Example, prompt: str) -> Example:
    """The pictures of an example with another prompt, and nothing else of it."""
    return Example(example.id, prompt, example.images, goal=example.goal, kind=example.kind)
