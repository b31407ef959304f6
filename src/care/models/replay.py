"""One batch whose clean pass is remembered, so that it can be run again from any layer on.

Changing something in layer l leaves everything before it as it was, so `Replay` keeps from one
clean pass what the vision tower and the decoder layers returned, and later passes take it from
there: only layers l … L−1 and the head are computed, for every component of a layer from the same
memory. It does so by replacing `forward` of the modules whose result is known, inside the model's
own forward pass; masks, positions, features added between layers and hooks therefore work as ever.
Whether this suits a model can be tried out; where it doesn't, full passes are run instead.

Memory: L · B · T · D numbers (`cache_bytes`). Qwen2.5-VL-7B (L = 28, D = 3584, bfloat16) takes
3.2 GB for B = 16 prompts of T = 1000 tokens. If that is more than allowed, only every k-th layer
is kept and up to k − 1 layers more are computed at each replay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from care.models.batches import Batch
from care.models.hooks import edit, read
from care.models.sites import Role, Site
from care.models.vlm import VLM


def cache_bytes(n_layers: int, batch: int, tokens: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that the remembered layer outputs (B, T, D) of L layers take; the tower's come on top.

    `cache_bytes(28, 16, 1000, 3584, torch.bfloat16)` is 3.2e9.
    """
    return n_layers * batch * tokens * width * dtype.itemsize


def kept_layers(n_layers: int, most: int) -> list[int]:
    """At most `most` of L layers to remember, evenly spaced; the last one is L − 1."""
    if most < 1:
        return []
    step = -(-n_layers // min(most, n_layers))
    return list(range(n_layers - 1, -1, -step))[::-1]


class Replay:
    """One batch whose clean pass is remembered.

    Attributes: `clean_outputs`, the logits (B, k, vocabulary) of the last k positions with nothing
    changed, `clean` (B, vocabulary), those of the last one, and `reuses`, whether the remembered
    results suit the model.
    """

    def __init__(
        self,
        vlm: VLM,
        batch: Batch,
        reuse: bool = True,
        *,
        keep: int = 1,
        max_bytes: int | None = None,
        check: bool = True,
    ) -> None:
        """Run the clean pass.

        With `reuse` False every later pass is a full one. `keep` is k. `max_bytes` bounds what the
        layer outputs may take (None: no bound). `check` tries out on this batch whether replays
        give what full passes do, which costs one and a half passes.
        """
        self.vlm = vlm
        self.batch = batch
        self.keep = keep
        layers = vlm.anatomy.n_layers
        rows, tokens = batch.roles.shape
        one = cache_bytes(1, rows, tokens, vlm.anatomy.width, vlm.dtype)
        self._kept = kept_layers(layers, layers if max_bytes is None else max_bytes // one)
        self._outputs: dict[int, list[Any]] = {}
        self._beside: dict[nn.Module, list[Any]] = {}
        self._decoding = False
        with replaced_forwards(self._recorders() if reuse else {}):
            self.clean_outputs = self._run()
        self.clean = self.clean_outputs[:, -1]
        self.reuses = reuse and self._complete and (not check or self._works())
        if not self.reuses:
            self._outputs.clear()
            self._beside.clear()

    def logits(self, start: int) -> Tensor:
        """Logits (B, vocabulary) of the last position; see `outputs`."""
        return self.outputs(start)[:, -1]

    def outputs(self, start: int, *, grad: bool = False) -> Tensor:
        """Logits (B, k, vocabulary) of the last k positions; layers before `start` aren't computed.

        Hooks on modules that are computed act as always; what they would have changed before
        `start` must be what it was in the clean pass. What enters layer `start − 1` is as it was
        too. Gradients, if asked for, reach back to layer `start`.
        """
        stubs: dict[nn.Module, Callable[..., Any]] = {}
        last = self._last_known(start)
        for index, layer in enumerate(self.vlm.anatomy.layers[: last + 1]):
            # A layer that wasn't kept may return anything: the next known one doesn't look at it.
            outputs = self._outputs[index if index in self._outputs else last]
            stubs[layer] = replaying(outputs, layer.forward)
        for module, outputs in self._beside.items():
            stubs[module] = replaying(outputs, module.forward)
        with replaced_forwards(stubs):
            return self._run(grad)

    def activations(self, sites: Sequence[Site]) -> dict[Site, tuple[Tensor, Tensor]]:
        """Clean activations (B, T, D) at `sites` and the roles (B, T), each from its own layer.

        Only the layers from the first of the sites to the last one are computed.
        """
        start = min(site.layer + (site.kind == "layer_out") for site in sites)
        last = self.vlm.anatomy.layers[max(site.layer for site in sites)]
        with read(self.vlm, sites) as recorder:
            handle = last.register_forward_hook(_stop)  # after those of `read`
            try:
                self.outputs(start)
            except _Stop:
                pass
            finally:
                handle.remove()
            return {site: recorder[site] for site in sites}

    def _run(self, grad: bool = False) -> Tensor:
        return self.vlm.forward(self.batch, logits_to_keep=self.keep, grad=grad)

    def _last_known(self, start: int) -> int:
        """The last layer that needn't be computed, −1 if there is none.

        Layer `start − 1` may be one whose input matters (a skip puts it in the place of the
        output), so it is taken as known only if its input is.
        """
        for layer in sorted(self._outputs, reverse=True):
            input_known = layer == 0 or layer - 1 in self._outputs
            if layer < start - 1 or (layer == start - 1 and input_known):
                return layer
        return -1

    def _recorders(self) -> dict[nn.Module, Callable[..., Any]]:
        """Forwards that compute as before and remember; beside the decoder only what precedes it.

        What runs after the decoder depends on it and must not be remembered.
        """
        model, layers = self.vlm.model, self.vlm.anatomy.layers
        recorders: dict[nn.Module, Callable[..., Any]] = {}

        def begin(forward: Callable[..., Any]) -> Callable[..., Any]:
            def begun(*args: Any, **kwargs: Any) -> Any:
                self._decoding = True
                return forward(*args, **kwargs)

            return begun

        for index in self._kept:
            outputs = self._outputs.setdefault(index, [])
            recorders[layers[index]] = recording(layers[index].forward, outputs)
        recorders[layers[0]] = begin(recorders.get(layers[0], layers[0].forward))
        for module in _beside(model, self.vlm.anatomy.decoder, model.get_output_embeddings()):
            outputs = self._beside.setdefault(module, [])
            recorders[module] = recording(module.forward, outputs, lambda: not self._decoding)
        return recorders

    @property
    def _complete(self) -> bool:
        """Whether every layer that was to be remembered has run exactly once."""
        return all(len(self._outputs[index]) == 1 for index in self._kept)

    def _works(self) -> bool:
        """Whether the clean logits come back, and a removal has the effect that it really has."""
        layers = self.vlm.anatomy.n_layers
        site = Site(layers // 2, "ffn_out")
        with edit(self.vlm, {site: _removed}):
            expected = self._run()[:, -1]
        try:
            clean = self.logits(layers)
            with edit(self.vlm, {site: _removed}):
                removed = self.logits(site.layer)
        except (AttributeError, TypeError, ValueError, LookupError):
            return False  # the full pass worked, so it's the remembered results
        return _close(removed, expected) and _close(clean, self.clean)


def _removed(h: Tensor, roles: Tensor) -> Tensor:
    return h.masked_fill((roles != Role.PAD)[..., None], 0)


class _Stop(Exception):
    """Ends a forward pass that has got as far as it is needed."""


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Stop


# -- replaced forwards -----------------------------------------------------------------------------


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
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


def recording(
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


def replaying(outputs: Sequence[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
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
