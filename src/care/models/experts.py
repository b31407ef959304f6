"""Neurons of an FFN of experts: where they are, and how they are reached.

A router chooses experts for every token, and what the FFN writes there is

    ffn_out = c Σ_e p_e W_down,e a_e + shared,    a_e = act(gate_e x) · up_e x

with the neurons a_e (F,) of the chosen experts e alone. transformers keeps the weights of all
experts of a layer in two tensors, (E, 2F, D) and (E, D, F) or both transposed, and computes them in
one call, between whose two maps no hook fits. So while neurons are read or edited, that call is
made here, expert by expert (`reaching`); before, it is tried out on a few vectors whether it comes
to the same, since nothing is taken from names. Two ways of calling are known: with the experts of
each token and their weights, or (Llama 4) with a copy of all tokens for each expert, scaled, so
that 0 says that it wasn't chosen. A shared expert, which reads all tokens, has a last map of its
own and counts as the expert after the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from care.errors import SiteError
from care.models import blocks
from care.models.devices import parameter_of

_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
"""What reads every token beside the chosen experts."""

_UP, _DOWN = "gate_up_proj", "down_proj"

At = Callable[[Tensor, Tensor], Tensor | None]
"""(neurons (n, F) of an expert for all n tokens, which of them are sent there (n,)) -> what takes
the place of the neurons; None leaves them."""


class Experts(NamedTuple):
    """The experts of one layer."""

    routed: nn.Module
    """Holds the weights of those that the router chooses among."""
    widths: tuple[int, ...]
    """How many neurons each has, a shared one last."""
    shared: nn.Module | None
    """The last map of the shared expert."""

    @property
    def count(self) -> int:
        """How many the router chooses among."""
        return len(self.widths) - (self.shared is not None)


def experts_of(layer: nn.Module) -> Experts | str | None:
    """The experts of a layer; None where it has none; as a string, why they can't be reached."""
    part, down = blocks.ffn(layer), blocks.down(layer)
    holder = next((each for each in (part, layer) if hasattr(each, "experts")), None)
    if holder is None:
        return (
            None
            if down is not None
            else f"{type(part).__name__} has no {blocks.DOWN[0]}, nor experts in one place"
        )
    routed = holder.experts
    assert isinstance(routed, nn.Module)
    if isinstance(routed, nn.ModuleList):
        return f"{type(holder).__name__} has them as modules that aren't told which tokens they get"
    up, last = (getattr(routed, name, None) for name in (_UP, _DOWN))
    if not isinstance(up, Tensor) or not isinstance(last, Tensor) or {up.ndim, last.ndim} != {3}:
        return f"{type(routed).__name__} doesn't keep them as {_UP} and {_DOWN} of three dimensions"
    if any(getattr(routed, odd, False) for odd in ("has_bias", "has_post_expert_norm")):
        return f"{type(routed).__name__} adds to what its experts write"
    if not (up.is_floating_point() and last.is_floating_point()):
        return f"the weights of {type(routed).__name__} are quantized"
    widths = (last.shape[1 if _transposed(routed) else 2],) * len(last)
    shared = down  # of an FFN beside the experts (Gemma 4)
    beside = _first(part, _SHARED)
    if beside is not None:
        shared = _first(beside, blocks.DOWN)
    if shared is None and beside is None:
        return Experts(routed, widths, None)
    if not isinstance(shared, nn.Linear):
        return f"the last map of {type(beside).__name__} isn't a linear one"
    return Experts(routed, (*widths, shared.in_features), shared)


def written_by(routed: nn.Module, expert: int) -> Tensor:
    """What a unit of each neuron of an expert writes: its last map (D, F)."""
    weight = parameter_of(routed, _DOWN)[expert]
    return weight.T if _transposed(routed) else weight


@contextmanager
def reaching(routed: nn.Module, at: Mapping[int, At]) -> Iterator[None]:
    """While open, `at` is called with the neurons of those experts of a layer in every pass.

    Raises SiteError on entry for experts that compute something else than is known here.
    """
    forward = _by_copies if _copies(routed) else _by_index
    # accelerate's offloading brings the weights back around what it calls so
    name = "_old_forward" if "_old_forward" in vars(routed) else "forward"
    before = vars(routed).get(name)
    given = _tried(routed)
    with torch.no_grad():
        expected = routed(*given)
    try:
        setattr(routed, name, lambda *args, **kwargs: forward(routed, {}, *args, **kwargs))
        with torch.no_grad():
            got = routed(*given)
        if not _same(got, expected):
            raise SiteError(
                f"The neurons of {type(routed).__name__} can't be reached: its experts compute "
                "something else than act(gate)·up and a linear map; use ffn_out instead."
            )
        setattr(routed, name, lambda *args, **kwargs: forward(routed, at, *args, **kwargs))
        yield
    finally:
        delattr(routed, name)
        if before is not None:
            setattr(routed, name, before)


def _first(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((part for part in found if isinstance(part, nn.Module)), None)


# -- the call --------------------------------------------------------------------------------------


def _by_index(
    routed: nn.Module,
    at: Mapping[int, At],
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Σ_e p_e W_down,e a_e (n, D) from hidden states (n, D), chosen experts and weights (n, k)."""
    up, down = (getattr(routed, name) for name in (_UP, _DOWN))
    written = torch.zeros_like(hidden_states)
    hit = set(top_k_index.unique().tolist())
    for expert in range(len(down)):
        if expert not in hit and expert not in at:
            continue
        token, place = torch.where(top_k_index == expert)
        neurons = _activated(routed, _linear(routed, hidden_states[token], up[expert]))
        if expert in at:
            sent = torch.zeros(len(hidden_states), dtype=torch.bool, device=token.device)
            sent[token] = True
            # Nobody's token: the same zeros for all, which take no memory.
            every = neurons.new_zeros(1, 1).expand(len(sent), neurons.shape[-1])
            if len(token):
                every = neurons.new_zeros(every.shape).index_put((token,), neurons)
            new = at[expert](every, sent)
            neurons = neurons if new is None else new[token]
        each = _linear(routed, neurons, down[expert]) * top_k_weights[token, place, None]
        written = written.index_add(0, token, each.to(written.dtype))
    return written


def _by_copies(routed: nn.Module, at: Mapping[int, At], hidden_states: Tensor) -> Tensor:
    """What each expert writes to its copy of the tokens (E·n, D), one expert after the other."""
    up, down = (getattr(routed, name) for name in (_UP, _DOWN))
    written = []
    for expert, own in enumerate(hidden_states.view(len(down), -1, hidden_states.shape[-1])):
        neurons = _activated(routed, _linear(routed, own, up[expert]))
        if expert in at:
            sent = (own != 0).any(-1)
            new = at[expert](neurons, sent)
            neurons = neurons if new is None else torch.where(sent[:, None], new, neurons)
        written.append(_linear(routed, neurons, down[expert]))
    return torch.cat(written)


def _activated(routed: nn.Module, both: Tensor) -> Tensor:
    """act(gate)·up (n, F) from both, side by side; families may have a way of their own."""
    own: Any = getattr(routed, "_apply_gate", None)
    if own is not None:
        return own(both)
    gate, up = both.chunk(2, dim=-1)
    act: Any = routed.act_fn
    return act(gate) * up


def _linear(routed: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight if _transposed(routed) else functional.linear(x, weight)


def _transposed(routed: nn.Module) -> bool:
    """Whether weights are (inputs, outputs); where nothing says so, the last map's shape does."""
    stated = getattr(routed, "is_transposed", None)
    if isinstance(stated, bool):
        return stated
    up, down = (getattr(routed, name) for name in (_UP, _DOWN))
    return up.shape[2] == 2 * down.shape[1] and up.shape[1] == down.shape[2]


def _copies(routed: nn.Module) -> bool:
    given = inspect.signature(type(routed).forward).parameters
    return len(given) == 2  # itself and the tokens


def _tried(routed: nn.Module) -> tuple[Tensor, ...]:
    """A few vectors to try out a call with, the same ones every time."""
    down = getattr(routed, _DOWN)
    transposed, count = _transposed(routed), len(down)
    width, dtype = down.shape[2 if transposed else 1], down.dtype
    hook = getattr(routed, "_hf_hook", None)
    device = getattr(hook, "execution_device", None) if down.device.type == "meta" else down.device
    drawn = torch.Generator().manual_seed(0)
    rows = count if _copies(routed) else 3
    hidden = torch.randn(rows, width, generator=drawn).to(device, dtype)
    if _copies(routed):
        return (hidden,)
    index = torch.arange(rows * min(2, count), device=device).reshape(rows, -1) % count
    return hidden, index, torch.full(index.shape, 0.5, device=device, dtype=dtype)


def _same(got: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding in the type of the weights."""
    if got.shape != expected.shape:
        return False
    close = max(1e-4, 4 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool(((got - expected).abs() <= close).all())
