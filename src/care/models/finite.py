"""Whether what a model computes are numbers at all.

In float16 nothing above 65,504 can be held, so that a model made for bfloat16 may overflow to
infinity and then to NaN; what is picked from such logits looks like an answer. A logit of −inf is
sound (a token that can't come); NaN, +inf, or nothing but −inf is not, and all three show in the
greatest logit of a place. Not here: activations that are fitted (`statistics.moments`,
`defenses.repair.family_subspace`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from care.errors import NotFiniteError


def sound(logits: Tensor) -> Tensor:
    """Which places (…) of logits (…, vocabulary) a token can be picked from."""
    return logits.amax(dim=-1).isfinite()


def check_logits(
    logits: Tensor, name: str, counted: Tensor | None = None, ids: Sequence[str] = ()
) -> None:
    """NotFiniteError unless every place of logits (B, …, vocabulary) is sound.

    `name` is the model's; `counted` (B, …) bool are the places that matter; `ids` are those of the
    B examples, the first bad one of which is named.
    """
    bad = ~sound(logits.detach())
    bad = (bad if counted is None else bad & counted).reshape(len(logits), -1).any(dim=1)
    if bool(bad.any()):
        first = f" for example {ids[int(bad.nonzero()[0])]!r}" if ids else ""
        raise NotFiniteError(not_finite(name, logits.dtype, first))


def not_finite(name: str, dtype: torch.dtype, where: str = "") -> str:
    """The sentence about a model whose numbers aren't finite."""
    kind = str(dtype).removeprefix("torch.")
    advice = (
        "float16 holds nothing above 65,504, so load the model in bfloat16 or float32"
        if dtype == torch.float16
        else "its weights may be damaged or an edit too strong; try the floating-point type float32"
    )
    return f"{name or 'The model'} computes NaN or infinity in {kind}{where}: {advice}."
