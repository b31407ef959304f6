"""Gradients of a metric at every FFN neuron: the backward passes of attribution patching.

A `Run` is one differentiable pass of a batch; each backward pass of it gives, for every neuron i of
every layer, summed over the positions t in scope,

    (a*_i,t − a_i,t) ∂m/∂a_i,t

with a* what replaces a. `integrated` takes the gradient at points between a and a*, all neurons
moved together; `dropped` takes it with the gradient through some layers left out. Weights are
frozen, and gradients flow from the neurons of the first layer on. Which of the three is taken, what
it costs, and sums over examples: `care.diagnosis.neurons.attribution_patching`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from care.diagnosis.neurons.interventions import Replacements
from care.errors import ModelError
from care.models.hooks import edit, read
from care.models.vlm import VLM

Metric = Callable[[Tensor], Tensor]
"""Logits (B, vocabulary) at the last prompt position -> values (B,), differentiable."""


class Run:
    """One differentiable run of a batch, with the gradient at every neuron in scope."""

    def __init__(
        self, vlm: VLM, found: Replacements, clean: dict[int, Tensor] | None = None, at: float = 0.0
    ) -> None:
        """`clean` rows (n, F) of each layer and a place `at` on the way to the replacement."""
        self.vlm, self.found = vlm, found
        self.clean, self.at = clean, at
        shape = (len(found.batch), vlm.anatomy.n_layers, vlm.anatomy.ffn_width)
        self.scores = torch.zeros(shape)
        self.squares = torch.zeros(shape[1:])
        self._first: Tensor | None = None

    def gradient(self, metric: Metric) -> Tensor:
        """(a* − a) ∂m/∂a, summed over the positions in scope (B, L, F)."""
        with self.recorded(metric) as value:
            self.backward(value)
        return self.scores

    @contextmanager
    def recorded(self, metric: Metric) -> Iterator[Tensor]:
        """The metric, summed over the batch, with its graph."""
        edits = {site: partial(self._visit, site.layer) for site in self._sites()}
        with edit(self.vlm, edits), torch.enable_grad():
            logits = self.vlm.forward(self.found.batch, logits_to_keep=1, grad=True)[:, -1]
            yield metric(logits).sum()

    def backward(self, value: Tensor, again: bool = False) -> None:
        """Add the scores of one backward pass; `again`: the graph is needed once more."""
        if self._first is None or not value.requires_grad:
            raise ModelError(
                f"No gradient of the metric reaches the neurons of {self.vlm.name}; use a metric "
                "that is differentiable in the logits, and no edit that detaches activations."
            )
        torch.autograd.grad(value, self._first, retain_graph=again)

    def _sites(self) -> list[Any]:
        return self.vlm.anatomy.sites("ffn_neurons")

    def _visit(self, layer: int, h: Tensor, roles: Tensor) -> Tensor:
        mask = self.found.mask.to(h.device)
        self.squares[layer] = h.detach()[mask].float().square().sum(0).cpu()
        new = h if self.clean is None else self._moved(layer, h, mask)
        if not new.requires_grad:  # the first layer: weights are frozen, so the graph starts here
            new = self._first = new.detach().requires_grad_()
        new.register_hook(partial(self._collect, layer, h.detach(), mask))
        return new

    def _moved(self, layer: int, h: Tensor, mask: Tensor) -> Tensor:
        """Neurons part of the way to what replaces them; gradients pass as if they hadn't moved."""
        assert self.clean is not None
        clean = self.clean[layer].float()
        there = clean + self.at * (self.found.rows[layer].to(clean) - clean)
        full = h.detach().clone()
        full[mask] = there.to(h)
        return full + (h - h.detach()) if h.requires_grad else full

    def _collect(self, layer: int, h: Tensor, mask: Tensor, gradient: Tensor) -> None:
        own = (h[mask] if self.clean is None else self.clean[layer]).float()
        score = (self.found.rows[layer].to(own) - own) * gradient[mask].float()
        summed = torch.zeros(len(h), h.shape[-1], device=h.device)
        summed.index_add_(0, self.found.row_of.to(h.device), score)
        self.scores[:, layer] += summed.cpu()


def integrated(vlm: VLM, found: Replacements, metric: Metric, steps: int) -> tuple[Tensor, Tensor]:
    """Mean score over the midpoints of S pieces of the joint path, and Σ a² of the clean run."""
    clean: dict[int, Tensor] = {}

    def keep(site: Any, h: Tensor, roles: Tensor) -> None:
        clean[site.layer] = h.detach()[found.mask.to(h.device)]

    with read(vlm, vlm.anatomy.sites("ffn_neurons"), sink=keep):
        vlm.forward(found.batch, logits_to_keep=1)
    squares = torch.stack([clean[layer].float().square().sum(0).cpu() for layer in sorted(clean)])
    parts = [Run(vlm, found, clean, (step + 0.5) / steps).gradient(metric) for step in range(steps)]
    return torch.stack(parts).mean(0), squares


def dropped(vlm: VLM, found: Replacements, metric: Metric, groups: int) -> tuple[Tensor, Tensor]:
    """Scores averaged over backward passes, each without what passes through some layers."""
    run = Run(vlm, found)
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
            for module in (layer.get_submodule("self_attn"), layer.get_submodule("mlp")):
                handle = module.register_forward_pre_hook(partial(hook, index), with_kwargs=True)
                stack.callback(handle.remove)
        yield
