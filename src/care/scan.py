"""Refusal log-odds with one site removed at a time, for many sites, at a fraction of the cost.

Removing a site of layer l leaves everything before it unchanged, so `Replay` keeps from one clean
pass what the vision tower and every decoder layer returned, and later passes take it from there:
only layers l … L−1 and the head are computed. It does so by replacing `forward` of the modules
whose result is known, inside the model's own forward pass; masks, positions, features added
between layers and hooks therefore work as ever. One (B, T, D) tensor per layer is held. Whether
this suits a model is tried out on every batch; where it doesn't, full passes are run instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from care.anatomy import Scope, Site
from care.batches import Batch
from care.errors import FitError, UsageError
from care.examples import Example
from care.hooks import Ablation, ablate
from care.vlm import VLM

Donors = Callable[[Site, Sequence[int]], tuple[Tensor, Tensor]]
"""(site, indices of n examples) -> activations (n, T, D) to put in their place, roles (n, T)."""


@dataclass(frozen=True)
class Removal:
    """One site to take away, and how (see `care.hooks.ablate`)."""

    site: Site
    """Where."""

    how: Ablation
    """`mean`, `zero`, `resample` or `skip`."""

    scopes: tuple[Scope, ...] = ("all",)
    """Positions at which the site is removed."""


class Scan(NamedTuple):
    """Refusal log-odds of N examples under S removals."""

    clean: np.ndarray
    """Log-odds of the untouched model in nats (N,)."""
    effects: np.ndarray
    """Log-odds with the site removed minus `clean` (S, N)."""
    relative_norm: np.ndarray
    """‖Δh‖/‖h‖ at the site, mean over the changed positions of all examples (S,)."""


class Replay:
    """One batch whose clean pass is remembered, so that it can be run again from any layer on.

    Attributes: `clean`, the logits (B, vocabulary) of the last position with nothing removed, and
    `reuses`, whether the remembered results suit the model.
    """

    def __init__(self, vlm: VLM, batch: Batch, reuse: bool = True) -> None:
        """Run the clean pass; with `reuse` False every later pass is a full one."""
        self.vlm = vlm
        self.batch = batch
        self._outputs: list[Any] = []
        self._beside: dict[nn.Module, list[Any]] = {}
        with _forwards(self._recorders() if reuse else {}):
            self.clean = self._forward()
        self.reuses = reuse and self._works()
        if not self.reuses:
            self._outputs.clear()
            self._beside.clear()

    def logits(self, start: int) -> Tensor:
        """Logits (B, vocabulary) of the last position; layers before `start` aren't computed.

        Hooks on modules that are computed act as always; what they would have changed before
        `start` must be what it was in the clean pass.
        """
        stubs: dict[nn.Module, Callable[..., Any]] = {}
        for layer, output in zip(self.vlm.anatomy.layers[:start], self._outputs, strict=False):
            stubs[layer] = _known([output], layer.forward)
        for module, outputs in self._beside.items():
            stubs[module] = _known(outputs, module.forward)
        with _forwards(stubs):
            return self._forward()

    def _forward(self) -> Tensor:
        return self.vlm.forward(self.batch, logits_to_keep=1)[:, -1]

    def _recorders(self) -> dict[nn.Module, Callable[..., Any]]:
        """Forwards that compute as before and remember; beside the decoder only what precedes it.

        What runs after the decoder depends on it and must not be remembered.
        """
        model = self.vlm.model
        recorders = {}
        for layer in self.vlm.anatomy.layers:
            recorders[layer] = _recording(layer.forward, self._outputs)
        for module in _beside(model, model.get_decoder(), model.get_output_embeddings()):
            outputs = self._beside.setdefault(module, [])
            recorders[module] = _recording(module.forward, outputs, lambda: not self._outputs)
        return recorders

    def _works(self) -> bool:
        """Whether the clean logits come back, and a removal has the effect that it really has."""
        layers = self.vlm.anatomy.n_layers
        if len(self._outputs) != layers:
            return False
        with ablate(self.vlm, [Site(layers // 2, "ffn_out")], "zero"):
            expected = self._forward()
        try:
            clean = self.logits(layers)
            with ablate(self.vlm, [Site(layers // 2, "ffn_out")], "zero"):
                removed = self.logits(layers // 2)
        except (AttributeError, TypeError, ValueError, LookupError):
            return False  # the full pass worked, so it's the remembered results
        return _close(removed, expected) and _close(clean, self.clean)


def scan(
    vlm: VLM,
    examples: Sequence[Example],
    removals: Sequence[Removal],
    *,
    means: Mapping[Site, Tensor] | None = None,
    donors: Donors | None = None,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> Scan:
    """Refusal log-odds of every example, as it is and under every removal.

    `means` are needed by `mean` removals, `donors` by `resample` ones. `advance` gets the number
    of newly finished (example, removal) pairs. A batch that doesn't fit into memory is halved.

    Raises UsageError if `refusal_ids` is empty or a mean is missing, FitError for log-odds that
    aren't finite.
    """
    if not vlm.refusal_ids:
        raise UsageError("refusal_ids is empty; set the first tokens of a refusal.")
    reuse = True

    def work(chunk: list[int]) -> list[tuple[list[float], np.ndarray]]:
        nonlocal reuse
        replay = Replay(vlm, vlm.batch([examples[index] for index in chunk]), reuse)
        reuse = replay.reuses
        odds, changes = [vlm.log_odds(replay.clean).tolist()], []
        for removal in removals:
            site = removal.site
            given = None
            if removal.how == "resample" and donors is not None:
                given = {site: donors(site, chunk)}
            # The output of a whole layer is replaced, so the layer itself isn't needed either.
            start = site.layer + (site.kind == "layer_out")
            with ablate(vlm, [site], removal.how, means, removal.scopes, given) as stats:
                odds.append(vlm.log_odds(replay.logits(start)).tolist())
            changes.append((stats.tokens, stats.tokens * stats.relative_norm))
            if advance is not None:
                advance(len(chunk))
        shares = np.array(changes, dtype=np.float64).reshape(-1, 2) / len(chunk)
        return [(list(row), shares) for row in zip(*odds, strict=True)]

    rows = vlm.in_batches(list(examples), batch_size, work)
    odds = np.array([row for row, _ in rows], dtype=np.float64).T
    _check_finite(odds, removals)
    tokens, norms = np.sum([shares for _, shares in rows], axis=0).T
    relative = np.divide(norms, tokens, out=np.zeros_like(norms), where=tokens > 0)
    return Scan(odds[0], odds[1:] - odds[0], relative)


def _check_finite(odds: np.ndarray, removals: Sequence[Removal]) -> None:
    bad = np.flatnonzero(~np.isfinite(odds).all(axis=1))
    if len(bad):
        what = "untouched" if bad[0] == 0 else f"without {removals[bad[0] - 1].site}"
        raise FitError(
            f"The refusal log-odds of the model {what} aren't finite for "
            f"{int((~np.isfinite(odds[bad[0]])).sum())} of {odds.shape[1]} examples; run it in "
            "float32 or bfloat16."
        )


# -- replaced forwards -----------------------------------------------------------------------------


@contextmanager
def _forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another `forward` for a while; their hooks still run around it."""
    # Weight-offloading libraries put a `forward` on the instance too; that one has to come back.
    before = {module: module.__dict__.get("forward") for module in replacements}
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own


def _recording(
    forward: Callable[..., Any], outputs: list[Any], wanted: Callable[[], bool] = lambda: True
) -> Callable[..., Any]:
    """`forward`, with each result appended to `outputs` if it was `wanted` when called."""

    def record(*args: Any, **kwargs: Any) -> Any:
        keep = wanted()
        output = forward(*args, **kwargs)
        if keep:
            outputs.append(_copied(output))
        return output

    return record


def _known(outputs: Sequence[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `outputs` one a call; calls beyond them are computed by `forward`."""
    remaining = iter(outputs)

    def replay(*args: Any, **kwargs: Any) -> Any:
        for output in remaining:
            return _copied(output)
        return forward(*args, **kwargs)

    return replay


def _copied(output: Any) -> Any:
    """The same tensors in a new container: some models write into what a tower returned."""
    return output if isinstance(output, Tensor) else copy.copy(output)


def _beside(module: nn.Module, decoder: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The largest modules that neither contain nor belong to the decoder or the head."""
    found: list[nn.Module] = []
    for child in module.children():
        if child is decoder or child is head:
            continue
        if any(part is decoder or part is head for part in child.modules()):
            found += _beside(child, decoder, head)
        else:
            found.append(child)
    return found


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the noise of kernels that aren't deterministic; NaN equals nothing."""
    found, expected = found.float(), expected.float()
    same = found == expected  # infinities too
    return bool((same | ((found - expected).abs() <= 1e-3 * _largest(expected))).all())


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if len(finite) else 0.0
