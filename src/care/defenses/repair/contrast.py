"""What counts as malicious and as benign, and the activations of both at a site.

A contrast names two lists of (example, answer) and the tokens that are compared:

| contrast | malicious | benign | tokens |
|---|---|---|---|
| `images` | pictures of attacks | pictures of benign inputs | image tokens |
| `comply-refuse` | malicious requests, complied with | the *same* requests, refused | answer |
| `comply-rest` | malicious requests, complied with | refusals, answers to benign ones | answer |

`comply-refuse` is the text contrast of the official release: since answers to benign requests
never enter its benign class, it pays for safety with over-refusal. `comply-rest` is the corrected
one. In a LLaVA prompt the image comes first, so under causal attention its tokens depend on the
image alone, whatever is asked: hence `images`. Answers are the model's own, so activations are
those that occur (the release feeds canned ones).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.defenses.repair.fitting_data import Answered, Material
from care.errors import FitError
from care.models.hooks import read
from care.models.sites import Scope, Site, scope_mask
from care.models.vlm import VLM

ContrastName = Literal["images", "comply-refuse", "comply-rest"]


@dataclass(frozen=True)
class Contrast:
    """Two classes and the tokens that are compared."""

    malicious: tuple[Answered, ...]
    """(example, answer) of the malicious class."""
    benign: tuple[Answered, ...]
    """(example, answer) of the benign class."""
    scope: Scope
    """Tokens whose activations are pooled: `image`, `text` or `response`."""

    def __post_init__(self) -> None:
        for name in ("malicious", "benign"):
            if not getattr(self, name):
                raise FitError(
                    f"the {name} class of the contrast on {self.scope} tokens is empty; pass "
                    "examples of both classes"
                )


def contrast(name: ContrastName, material: Material) -> Contrast:
    """The contrast `name` (table above) of `material`."""
    if name == "images":
        return Contrast(
            _pictures(material.complied + material.refused), _pictures(material.answered), "image"
        )
    if name == "comply-rest":
        return Contrast(material.complied, material.refused + material.answered, "response")
    if name != "comply-refuse":
        raise FitError(f"unknown contrast {name!r}: use images, comply-refuse or comply-rest")
    refusals = tuple(answer for _, answer in material.refused)
    same = tuple(
        (example, refusals[i % len(refusals)]) for i, (example, _) in enumerate(material.complied)
    )
    return Contrast(material.complied, same, "response")


def _pictures(answered: Sequence[Answered]) -> tuple[Answered, ...]:
    """Those with images, each different list of images once, whatever it was loaded from."""
    kept: dict[tuple[str, ...], Answered] = {}
    for example, answer in answered:
        if example.images:
            kept.setdefault(content(example), (example, answer))
    return tuple(kept.values())


def content(example: Example) -> tuple[str, ...]:
    """SHA-256 of the size and pixels of each image."""
    return tuple(
        hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()
        for image in example.load_images()
    )


def pool(h: Tensor, roles: Tensor, scope: Scope) -> Tensor:
    """Mean activation of each row over the tokens in scope: (B, T, D), (B, T) -> (B, D)."""
    weights = scope_mask(roles, (scope,)).to(torch.float32)
    counts = weights.sum(1, keepdim=True)
    if bool((counts == 0).any()):
        raise FitError(f"an example has no token in scope {scope!r}; fit on examples that have one")
    return torch.einsum("btd,bt->bd", h.float(), weights) / counts


@torch.no_grad()
def activations(
    vlm: VLM,
    answered: Sequence[Answered],
    sites: Sequence[Site],
    scope: Scope,
    batch_size: int = 16,
) -> dict[Site, np.ndarray]:
    """Pooled activations (N, D) at each site, in the order of `answered`."""
    order = sorted(range(len(answered)), key=lambda i: len(answered[i][0].prompt))
    rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
    with read(vlm, list(sites)) as recorder:
        for start in range(0, len(order), batch_size):
            chunk = [answered[i] for i in order[start : start + batch_size]]
            responses = None if scope in ("image", "decision") else [answer for _, answer in chunk]
            vlm.forward(vlm.batch([example for example, _ in chunk], responses), logits_to_keep=1)
            for site in sites:
                rows[site].append(pool(*recorder[site], scope).cpu())
    back = np.argsort(order)
    return {site: torch.cat(parts).numpy()[back] for site, parts in rows.items()}
