"""What a search for neurons says.

The figures are made in `care.diagnosis.neurons.search`; nothing is computed here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from care.diagnosis.neurons.attribution_patching import Method
from care.diagnosis.neurons.interpretation import Firing, Patch
from care.statistics.intervals import Interval


@dataclass(frozen=True)
class NeuronEffect:
    """One neuron that was replaced for real; effects in nats of refusal log-odds."""

    layer: int
    """Layer."""
    neuron: int
    """Index within the layer."""
    estimate: float
    """Effect according to the gradients."""
    exact: float
    """Mean effect of replacing it."""
    low: float
    """Lower limit, bootstrap over goals."""
    high: float
    """Upper limit."""
    p: float
    """Two-sided p-value, sign flips over goals."""
    q: float
    """Benjamini and Hochberg's q over all verified neurons and controls."""
    benign_exact: float | None
    """Mean effect of the control replacement on benign prompts; None where there is no control."""
    top_tokens: tuple[str, ...] = ()
    """Tokens its output column makes likelier."""
    suppressed_tokens: tuple[str, ...] = ()
    """Tokens it makes less likely."""
    examples: tuple[Firing, ...] = ()
    """(example, token, activation): prompts in which it is strongest."""
    patches: tuple[Patch, ...] = ()
    """(example, image, row, column, activation): image patches on which it is strongest."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        tree = asdict(self)
        for name in ("top_tokens", "suppressed_tokens"):
            tree[name] = list(tree[name])
        for name in ("examples", "patches"):
            tree[name] = [item._asdict() for item in getattr(self, name)]
        return tree


@dataclass(frozen=True)
class NeuronReport:
    """Result of `find_neurons`."""

    method: Method
    """How effects were estimated."""
    n_neurons: int
    """L·F, all of which were estimated."""
    steps: int
    """Backward passes per example."""
    forward_equivalents: int
    """Cost of the estimate per example, in forward passes; a backward pass counts as two."""
    scopes: tuple[str, ...]
    """Positions at which neurons were replaced."""
    spearman: Interval
    """ρ of estimate and exact effect over verified neurons and controls; bootstrap over goals."""
    precision: dict[int, float]
    """precision@k over the same."""
    found: tuple[NeuronEffect, ...]
    """The verified neurons, greatest absolute effect first."""
    controls: tuple[NeuronEffect, ...]
    """Random neurons of the same size."""

    @property
    def control_ratio(self) -> float:
        """Mean |effect| of the verified neurons over that of the controls."""
        sizes = [np.mean([abs(e.exact) for e in part]) for part in (self.found, self.controls)]
        return float(sizes[0] / sizes[1]) if sizes[1] > 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rho = self.spearman
        ratio = self.control_ratio
        return {
            "method": self.method,
            "n_neurons": self.n_neurons,
            "steps": self.steps,
            "forward_equivalents": self.forward_equivalents,
            "scopes": list(self.scopes),
            "spearman": {"rho": rho.rate, "low": rho.low, "high": rho.high, "n": rho.n},
            "precision": {str(k): share for k, share in self.precision.items()},
            "control_ratio": ratio if math.isfinite(ratio) else None,
            "found": [item.to_json() for item in self.found],
            "controls": [item.to_json() for item in self.controls],
        }
