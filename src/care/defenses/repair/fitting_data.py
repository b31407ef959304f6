"""What a repair is fitted on: contrasts of the model's own answers, and the activations of tokens.

A gated fit tells the classes of a `Material` (`care.defenses.material`) apart at the decision
position, the last of the prompt. One without a gate names a *contrast*, two lists of
(example, answer) and the tokens that are compared:

| contrast | malicious | benign | tokens |
|---|---|---|---|
| `images` | pictures of attacks | pictures of benign inputs | image tokens |
| `comply-refuse` | malicious requests, complied with | the *same* requests, refused | answer |
| `comply-rest` | malicious requests, complied with | refusals, answers to benign ones | answer |

Of these tokens the mean is taken, of all of them or of those that are attributed (`attribution`).

`comply-refuse` is the text contrast of the official release: since answers to benign requests
never enter its benign class, it pays for safety with over-refusal. `comply-rest` is the corrected
one. In a LLaVA prompt the image comes first, so under causal attention its tokens depend on the
image alone, whatever is asked: hence `images`. Answers are the model's own, so activations are
those that occur (the release feeds canned ones). Nothing here fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from care.data.digests import picture_digests
from care.defenses.activations import pool, pooled_activations
from care.defenses.material import Answered, Material, Sorted
from care.defenses.monitors.choosing import Said
from care.defenses.repair.attribution import AttributionConfig, attributed
from care.errors import FitError
from care.models.sites import Scope, Site
from care.models.vlm import VLM
from care.statistics.moments import Moments

AT_ONCE = 2048
"""Examples whose activations are held at once where moments are all that is asked for."""

ContrastName = Literal["images", "comply-refuse", "comply-rest"]

# -- contrasts -------------------------------------------------------------------------------------


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
    same = tuple(
        (example, refusal)
        for (example, _), refusal in zip(material.complied, material.refusing, strict=True)
    )
    return Contrast(material.complied, same, "response")


def _pictures(answered: Sequence[Answered]) -> tuple[Answered, ...]:
    """Those with images, each different list of images once, whatever it was loaded from."""
    kept: dict[tuple[str, ...], Answered] = {}
    for example, answer in answered:
        if example.images:
            kept.setdefault(picture_digests(example), (example, answer))
    return tuple(kept.values())


# -- activations -----------------------------------------------------------------------------------


def activations(
    vlm: VLM,
    answered: Sequence[Answered],
    sites: Sequence[Site],
    scope: Scope,
    batch_size: int = 16,
    attribution: AttributionConfig | None = None,
) -> dict[Site, np.ndarray]:
    """Pooled activations (N, D) at each site, in the order of `answered`.

    With an `attribution`, of the attributed tokens of the picture (`image`), of the answer
    (`response`) or of the request (`text`); the decision position is one token.
    """

    def pooling(h: Tensor, roles: Tensor) -> Tensor:
        if attribution is None or scope == "decision":
            return pool(h, roles, scope)
        return attributed(h, roles, "image" if scope == "image" else "text", attribution)

    asked_alone = scope in ("image", "text", "decision")
    return pooled_activations(
        vlm,
        [example for example, _ in answered],
        sites,
        pooling,
        answers=None if asked_alone else [answer for _, answer in answered],
        batch_size=batch_size,
    )


def moments_of(
    vlm: VLM,
    answered: Sequence[Answered],
    sites: Sequence[Site],
    scope: Scope,
    batch_size: int = 16,
    attribution: AttributionConfig | None = None,
) -> dict[Site, Moments]:
    """Moments of what `activations` gives, of which `AT_ONCE` rows are held beside them at most.

    So memory doesn't grow with the examples once `Moments` has folded their rows.
    """
    found = {site: Moments(vlm.anatomy.site_width(site)) for site in sites}
    for start in range(0, len(answered), AT_ONCE):
        some = answered[start : start + AT_ONCE]
        taken = activations(vlm, some, sites, scope, batch_size, attribution)
        for site, rows in taken.items():
            found[site].partial_fit(rows)
    return found


def said(material: Sorted) -> list[Said]:
    """The material as monitors are fitted on it: answers, and whether they are harmful."""
    harmless = [*material.refused, *material.answered]
    return [(e, answer, True) for e, answer in material.complied] + [
        (e, answer, False) for e, answer in harmless
    ]
