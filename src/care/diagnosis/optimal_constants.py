"""Optimal constants: what to put at a site so that the model notices least that it is ablated.

A mean is an arbitrary constant; the model may react to it more than to the loss of what the site
computed. Li and Janson (arXiv 2409.09951) take the constant that costs least. Here it minimises

    a* = argmin_a  E_x KL( p(· | x) ‖ p(· | x, site := a) )

over the first answer token of prompts x, by gradient steps of Adam from the mean, with one vector
for each position class or one for all. The best step is kept, so that the loss on x is never above
that of the mean. Fit on other examples than those that are scored: a constant could learn the
metric. Not here: constants for windows, which are not those of their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from care.data.example import Example
from care.diagnosis.ablation import ablate, first_needed
from care.diagnosis.activation_means import spread
from care.errors import FitError, UsageError
from care.models.replay import Replay
from care.models.sites import Role, Site
from care.models.vlm import VLM
from care.runs.settings import require

_STEP = 0.1
"""Learning rate in units of the root mean square of the mean activation."""


@dataclass(frozen=True)
class ConstantConfig:
    """Settings of `fit_constants`."""

    steps: int = 8
    """Gradient steps for each site."""

    per_class: bool = True
    """One vector for each position class, or one for all positions (from the mean of the text)."""

    max_examples: int = 8
    """Examples used, evenly spaced over those given; they form one batch."""

    max_cache_bytes: int | None = None
    """Bound on what is remembered of the clean pass."""

    def __post_init__(self) -> None:
        require(self, {"steps": 1, "max_examples": 1})


def fit_constants(
    vlm: VLM,
    examples: Sequence[Example],
    means: Mapping[Site, Tensor],
    config: ConstantConfig | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[Site, Tensor]:
    """The optimal constant of each site in `means`, in the form of a table (5, D), float32.

    `means` (5, D) per position class are where the search starts
    (`care.diagnosis.activation_means.collect`). Classes that don't occur in `examples` keep their
    mean. The cost is 3 · `steps` times that of a replay for each site. `advance` gets 1 after each
    site.

    Raises UsageError without examples or for means of another shape, FitError if the model gives
    values that aren't finite.
    """
    config = config or ConstantConfig()
    if not examples:
        raise UsageError("Constants need examples to be fitted on; none were given.")
    batch = vlm.batch(spread(examples, config.max_examples))
    replay = Replay(vlm, batch, max_bytes=config.max_cache_bytes)
    found = {}
    for site, mean in means.items():
        found[site] = _fit(replay, site, mean, config)
        if advance is not None:
            advance(1)
    return found


def divergence(replay: Replay, site: Site, values: Tensor, grad: bool = False) -> Tensor:
    """E KL(clean ‖ ablated) in nats over the batch, with `values` (D,) or (5, D) put at `site`."""
    with ablate(replay.vlm, [site], "constant", {site: values}):
        start = first_needed([site], "constant")
        logits = replay.outputs(start, grad=grad)[:, -1].float()
    clean = replay.clean.float().log_softmax(-1)
    return kl_div(logits.log_softmax(-1), clean, reduction="batchmean", log_target=True)


def _fit(replay: Replay, site: Site, mean: Tensor, config: ConstantConfig) -> Tensor:
    if mean.ndim != 2 or len(mean) <= Role.RESPONSE:
        raise UsageError(
            f"means[{site}] has shape {tuple(mean.shape)}; expected one row per position class."
        )
    start = mean.to(replay.vlm.device, torch.float32)
    if not config.per_class:
        start = start[Role.TEXT].clone()
    values = start.clone().requires_grad_(True)
    if not bool(start.isfinite().all()):
        raise FitError(f"The constant of {site} can't be fitted: its mean isn't finite.")
    scale = float(start.square().mean().sqrt())
    optimiser = torch.optim.Adam([values], lr=_STEP * max(scale, 1e-6))
    best, least = start, float("inf")
    for step in range(config.steps + 1):
        loss = divergence(replay, site, values, grad=True)
        if not bool(torch.isfinite(loss)):
            raise FitError(f"The constant of {site} can't be fitted: the loss isn't finite.")
        if loss.item() < least:
            best, least = values.detach().clone(), loss.item()
        if step < config.steps:
            # Only with respect to `values`: the weights of the model get no gradients.
            (values.grad,) = torch.autograd.grad(loss, [values])
            optimiser.step()
    return best.expand(len(mean), -1).clone().cpu()
