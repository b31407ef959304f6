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
The passes themselves are in `care.diagnosis.neurons.attribution_patching`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from care.diagnosis.measures import Metric, refusal_log_odds
from care.diagnosis.neurons.interventions import Counterfactual, Replacements
from care.errors import DataError, FitError, ModelError, UsageError
from care.models import blocks
from care.models.gradients import differentiable
from care.models.hooks import edit, read
from care.models.neuron_table import NeuronTable
from care.models.sites import Neuron, Site
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
    table: NeuronTable
    """Which neuron is at each place of (L, F)."""

    @property
    def mean(self) -> np.ndarray:
        """Estimated effect of each neuron in units of the metric (L, F)."""
        return self.sums.sum(0, dtype=np.float64) / self.counts.sum()

    def ranking(self, n: int | None = None) -> list[Neuron]:
        """Neurons by absolute estimate, greatest first."""
        size = np.where(self.table.real, np.abs(self.mean), -1.0)
        order = np.argsort(-size, axis=None, kind="stable")[: self.table.total]
        return self.table.neurons(order[:n])


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
    metric = metric or refusal_log_odds(vlm)
    table = vlm.anatomy.neurons
    total = _Totals(question.goals, *table.shape)
    passes = {"atp": 1, "ig": steps, "graddrop": groups}[method]

    def work(chunk: list[int]) -> list[None]:
        found = question.replacements(vlm, chunk)
        if method == "ig":
            scores, squares = integrated(vlm, found, metric, steps)
        elif method == "graddrop":
            scores, squares = dropped(vlm, found, metric, groups)
        else:
            run = GradientPass(vlm, found)
            scores, squares = run.gradient(metric), run.squares
        total.add(chunk, scores, squares, int(found.mask.sum()))
        return [None] * len(chunk)

    with differentiable(vlm):
        vlm.in_batches(list(question.examples), batch_size, work, advance)
    total.check(question.scopes)
    size = (total.squares / total.positions).sqrt().numpy()
    cost = _cost(method, passes)
    return Estimates(method, passes, cost, total.sums.numpy(), total.counts.numpy(), size, table)


def check_method(method: str, steps: int, groups: int) -> None:
    """UsageError unless these are settings of `estimate`."""
    if method not in get_args(Method):
        raise UsageError(f"method is {method!r}; use one of {', '.join(get_args(Method))}.")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}.")
    if groups < 2:
        raise UsageError(f"groups must be at least 2, so that some gradient is left; got {groups}.")


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


# -- passes ----------------------------------------------------------------------------------------


class GradientPass:
    """One differentiable run of a batch, with the gradient at every neuron in scope."""

    def __init__(
        self,
        vlm: VLM,
        found: Replacements,
        clean: Mapping[Site, Tensor] | None = None,
        at: float = 0.0,
    ) -> None:
        """`clean` rows (n, F) at each site and a place `at` on the way to the replacement."""
        self.vlm, self.found = vlm, found
        self.clean, self.at = clean, at
        self.columns = vlm.anatomy.neurons.columns
        shape = (len(found.batch), *vlm.anatomy.neurons.shape)
        self.scores = torch.zeros(shape)
        self.squares = torch.zeros(shape[1:])
        self._first: list[Tensor] = []

    def gradient(self, metric: Metric) -> Tensor:
        """(a* − a) ∂m/∂a, summed over the positions in scope (B, L, F)."""
        with self.recorded(metric) as value:
            self.backward(value)
        return self.scores

    @contextmanager
    def recorded(self, metric: Metric) -> Iterator[Tensor]:
        """The metric, summed over the batch, with its graph."""
        edits = {site: partial(self._visit, site) for site in self.columns}
        with edit(self.vlm, edits), torch.enable_grad():
            logits = self.vlm.forward(self.found.batch, logits_to_keep=1, grad=True)[:, -1]
            yield metric(logits).sum()

    def backward(self, value: Tensor, again: bool = False) -> None:
        """Add the scores of one backward pass; `again`: the graph is needed once more."""
        if not self._first or not value.requires_grad:
            raise ModelError(
                f"No gradient of the metric reaches the neurons of {self.vlm.name}; use a metric "
                "that is differentiable in the logits, and no edit that detaches activations."
            )
        # Of the first layer's experts, those that nothing was sent to have no gradient.
        torch.autograd.grad(value, self._first, retain_graph=again, allow_unused=True)

    def _visit(self, site: Site, h: Tensor, roles: Tensor) -> Tensor:
        mask = self.found.mask.to(h.device)
        own = h.detach()[mask].float()
        self.squares[site.layer, self.columns[site]] = own.square().sum(0).cpu()
        new = h if self.clean is None else self._moved(site, h, mask)
        if not new.requires_grad:  # the first layer: weights are frozen, so the graph starts here
            new = new.detach().requires_grad_()
            self._first.append(new)
        new.register_hook(partial(self._collect, site, own, mask))
        return new

    def _moved(self, site: Site, h: Tensor, mask: Tensor) -> Tensor:
        """Neurons part of the way to what replaces them; gradients pass as if they hadn't moved."""
        assert self.clean is not None
        clean = self.clean[site].float()
        there = clean + self.at * (self.found.rows[site].to(clean) - clean)
        full = h.detach().clone()
        full[mask] = there.to(h)
        return full + (h - h.detach()) if h.requires_grad else full

    def _collect(self, site: Site, own: Tensor, mask: Tensor, gradient: Tensor) -> None:
        own = own if self.clean is None else self.clean[site].float()
        score = (self.found.rows[site].to(own) - own) * gradient[mask].float()
        summed = torch.zeros(len(mask), own.shape[-1], device=own.device)
        summed.index_add_(0, self.found.row_of.to(own.device), score)
        self.scores[:, site.layer, self.columns[site]] += summed.cpu()


def integrated(vlm: VLM, found: Replacements, metric: Metric, steps: int) -> tuple[Tensor, Tensor]:
    """Mean score over the midpoints of S pieces of the joint path, and Σ a² of the clean run."""
    clean: dict[Site, Tensor] = {}
    columns = vlm.anatomy.neurons.columns

    def keep(site: Site, h: Tensor, roles: Tensor) -> None:
        clean[site] = h.detach()[found.mask.to(h.device)]

    with read(vlm, list(columns), sink=keep):
        vlm.forward(found.batch, logits_to_keep=1)
    squares = torch.zeros(vlm.anatomy.neurons.shape)
    for site, own in clean.items():
        squares[site.layer, columns[site]] = own.float().square().sum(0).cpu()
    parts = [
        GradientPass(vlm, found, clean, (step + 0.5) / steps).gradient(metric)
        for step in range(steps)
    ]
    return torch.stack(parts).mean(0), squares


def dropped(vlm: VLM, found: Replacements, metric: Metric, groups: int) -> tuple[Tensor, Tensor]:
    """Scores averaged over backward passes, each without what passes through some layers."""
    run = GradientPass(vlm, found)
    closed: set[int] = set()
    signed, absolute = torch.zeros_like(run.scores), torch.zeros_like(run.scores)
    with _gates(vlm, closed), run.recorded(metric) as value:
        for group in range(groups):
            closed.clear()
            closed.update(range(group, vlm.anatomy.n_layers, groups))
            run.scores.zero_()
            run.backward(value, again=group < groups - 1)
            signed += run.scores
            absolute += run.scores.abs()
    return signed.sign() * absolute / groups, run.squares


@contextmanager
def _gates(vlm: VLM, closed: set[int]) -> Iterator[None]:
    """No gradient leaves the attention or FFN of a layer in `closed` downwards."""

    def watched(layer: int, h: Tensor) -> Tensor:
        if not h.requires_grad:
            return h
        inside = h.view_as(h)  # a node of its own: the residual beside it keeps its gradient
        inside.register_hook(
            lambda gradient: torch.zeros_like(gradient) if layer in closed else None
        )
        return inside

    def hook(layer: int, module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (watched(layer, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": watched(layer, kwargs["hidden_states"])}

    with ExitStack() as stack:
        for index, layer in enumerate(vlm.anatomy.layers):
            for module in blocks.entrances(layer):
                handle = module.register_forward_pre_hook(partial(hook, index), with_kwargs=True)
                stack.callback(handle.remove)
        yield
