"""Effects of every FFN neuron of every layer at once, from gradients: estimates, not proof.

Attribution patching (`atp`; Syed et al. 2023, Kramár et al. 2024) takes the metric as linear in
each neuron,

    effect_i ≈ E Σ_t (a*_i,t − a_i,t) ∂m/∂a_i,t |_x

which two forward passes (what replaces, and x) and one backward pass give for all L·F neurons.
Where the metric saturates, `ig` takes the gradient at S points of the joint path on which all
neurons move together from a to a*: at step j they are at a + (j − ½)/S (a* − a), and gradients
still pass through the layers above. Where a neuron's direct and indirect effect cancel, `graddrop`
(AtP*, Kramár et al. 2024, arXiv 2403.00745) repeats the backward pass, each time without the
gradient that flows through the attention and FFN of some layers, and averages

    effect_i ≈ sign(Σ_g e_i,g) · mean_g |e_i,g|.

The paper drops one layer at a time; here every `groups`-th layer is dropped together, which costs
`groups` backward passes and not L. Gradients are cut where they would enter a sublayer from below,
so a layer's own neurons keep theirs. Scores are summed per group of goals while examples stream by.
The passes themselves are in `care.diagnosis.neurons.gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from care.diagnosis.neurons.gradients import Metric, Run, dropped, integrated
from care.diagnosis.neurons.interventions import Counterfactual
from care.errors import DataError, FitError, UsageError
from care.models.gradients import differentiable
from care.models.sites import Neuron
from care.models.vlm import VLM

Method = Literal["atp", "ig", "graddrop"]

MOST_GROUPS = 64
"""Goals are folded into at most this many groups, so that 7B models (530 000 neurons) need 136 MB
for all scores; the bootstrap then resamples groups of goals."""

_FORWARD, _BACKWARD = 1, 2


@dataclass(frozen=True, eq=False)
class Estimates:
    """Estimated effects of all neurons."""

    method: Method
    """How they were made."""
    steps: int
    """Backward passes per example."""
    forward_equivalents: int
    """Cost of an example in forward passes of one prompt; a backward pass counts as two."""
    sums: np.ndarray
    """Sum of the effects over the examples of each group of goals (G, L, F), float32."""
    counts: np.ndarray
    """Number of examples in each group (G,)."""
    size: np.ndarray
    """Root mean square of a_i over the positions in scope (L, F)."""

    @property
    def mean(self) -> np.ndarray:
        """Estimated effect of each neuron in units of the metric (L, F)."""
        return self.sums.sum(0, dtype=np.float64) / self.counts.sum()

    def ranking(self, n: int | None = None) -> list[Neuron]:
        """Neurons by absolute estimate, greatest first."""
        flat = np.argsort(-np.abs(self.mean), axis=None, kind="stable")[:n]
        layers, neurons = np.unravel_index(flat, self.mean.shape)
        return list(zip(layers.tolist(), neurons.tolist(), strict=True))


def estimate(
    vlm: VLM,
    question: Counterfactual,
    method: Method = "atp",
    *,
    steps: int = 8,
    groups: int = 4,
    metric: Metric | None = None,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> Estimates:
    """Estimated effect of every FFN neuron of every layer.

    `steps` (5 to 20 are usual) is for `ig`, `groups` for `graddrop`. `metric` is the refusal
    log-odds by default. Per batch the neurons of both runs are held, (n, F) of each layer.

    Raises UsageError for a wrong method or number, DataError if no prompt has a position in scope,
    FitError for gradients that aren't finite.
    """
    check_method(method, steps, groups)
    metric = metric or refusal_metric(vlm)
    total = _Totals(question.goals, vlm.anatomy.n_layers, vlm.anatomy.ffn_width)
    passes = {"atp": 1, "ig": steps, "graddrop": groups}[method]

    def work(chunk: list[int]) -> list[None]:
        found = question.replacements(vlm, chunk)
        if method == "ig":
            scores, squares = integrated(vlm, found, metric, steps)
        elif method == "graddrop":
            scores, squares = dropped(vlm, found, metric, groups)
        else:
            run = Run(vlm, found)
            scores, squares = run.gradient(metric), run.squares
        total.add(chunk, scores, squares, int(found.mask.sum()))
        return [None] * len(chunk)

    with differentiable(vlm):
        vlm.in_batches(list(question.examples), batch_size, work, advance)
    total.check(question.scopes)
    size = (total.squares / total.positions).sqrt().numpy()
    cost = _cost(method, passes)
    return Estimates(method, passes, cost, total.sums.numpy(), total.counts.numpy(), size)


def check_method(method: str, steps: int, groups: int) -> None:
    """UsageError unless these are settings of `estimate`."""
    if method not in get_args(Method):
        raise UsageError(f"method is {method!r}; use one of {', '.join(get_args(Method))}.")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}.")
    if groups < 2:
        raise UsageError(f"groups must be at least 2, so that some gradient is left; got {groups}.")


def refusal_metric(vlm: VLM) -> Metric:
    """The refusal log-odds; UsageError without refusal tokens."""
    if not vlm.refusal_ids:
        raise UsageError("refusal_ids is empty; set the first tokens of a refusal.")
    return vlm.log_odds


def goal_groups(goals: Sequence[str]) -> np.ndarray:
    """The group of each example's goal (N,), numbered from 0, at most `MOST_GROUPS` of them."""
    return np.unique(np.asarray(goals), return_inverse=True)[1] % MOST_GROUPS


def _cost(method: Method, passes: int) -> int:
    """Forward equivalents: the run that gives what replaces (donors, or their means), then x."""
    if method == "ig":
        return 2 * _FORWARD + passes * (_FORWARD + _BACKWARD)
    return 2 * _FORWARD + passes * _BACKWARD


class _Totals:
    """Running sums over batches; a batch that failed for want of memory has added nothing."""

    def __init__(self, goals: Sequence[str], layers: int, width: int) -> None:
        self.group = torch.from_numpy(goal_groups(goals))
        count = int(self.group.max()) + 1
        self.sums = torch.zeros(count, layers, width)
        self.counts = torch.bincount(self.group, minlength=count)
        self.squares = torch.zeros(layers, width, dtype=torch.float64)
        self.positions = 0

    def add(self, chunk: list[int], scores: Tensor, squares: Tensor, positions: int) -> None:
        self.sums.index_add_(0, self.group[chunk], scores.cpu())
        self.squares += squares.cpu()
        self.positions += positions

    def check(self, scopes: Sequence[str]) -> None:
        if not self.positions:
            raise DataError(
                f"No prompt has a position in scope {', '.join(scopes)} with a counterpart; choose "
                "another scope."
            )
        bad = int((~self.sums.isfinite()).sum())
        if bad:
            raise FitError(
                f"{bad} of {self.sums.numel()} neuron scores aren't finite; run the model in "
                "float32 or bfloat16."
            )
