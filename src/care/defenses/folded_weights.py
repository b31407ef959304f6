"""Edits of activations, folded into the weights that write them.

An affine edit h' = h − U (Vᵀ h − m) (`linear_parts`) of what a linear map y = W x + b writes is one
of its weights, and so is one of what it reads:

    after it     W' = W − U (Vᵀ W),    b' = b − U (Vᵀ b − m)
    before it    W' = W − (W U) Vᵀ,    b' = b + W U m

so W' = W + B A with r = K columns and rows, and b' = b + s. `ffn_neurons` are read by the last map
of an FFN; `ffn_out` and `mhsa_out` are written by the last map of FFN and attention, unless a norm
follows it (Gemma 3). That this is so isn't guessed from names: in one pass the map's output has to
be what is at the site, to the bit. No linear map writes `layer_out`, which is a sum.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from care.defenses.base import Defense, Touches
from care.defenses.linear_parts import Affine, Obstacle
from care.errors import UsageError
from care.models.loading import probe
from care.models.sites import Site
from care.models.vlm import VLM

_BIASES = {"mlp": "mlp_bias", "self_attn": "attention_bias"}
"""The setting that gives biases to the linear maps of a part of a layer, where a class has it."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Fold:
    """What is added to one linear map: B A to its weights, s to its bias, in float64."""

    name: str
    """The map, as the model names it."""
    linear: nn.Linear
    """The same."""
    up: Tensor
    """B (outputs, r)."""
    down: Tensor
    """A (r, inputs)."""
    shift: Tensor
    """s (outputs,)."""

    @property
    def shifts(self) -> bool:
        """Whether anything is added to the bias."""
        return bool(self.shift.any())

    def weight(self) -> Tensor:
        """W' in the type of W."""
        own = self.linear.weight.detach()
        more = self.up.to(own.device) @ self.down.to(own.device)
        return (own.double() + more).to(own.dtype)

    def bias(self) -> Tensor | None:
        """b' in the type of W; None where there was none and nothing is added."""
        own, weight = self.linear.bias, self.linear.weight
        if own is None and not self.shifts:
            return None
        before = 0 if own is None else own.detach().double()
        return (before + self.shift.to(weight.device)).to(weight.dtype)


def unfoldable(vlm: VLM, sites: Sequence[Site]) -> dict[Site, Obstacle]:
    """The sites whose activations no linear map of the model writes, and why."""
    found = _maps(vlm, sites)
    return {site: one for site, one in found.items() if isinstance(one, Obstacle)}


def folds(vlm: VLM, maps: Mapping[Site, Affine]) -> list[Fold]:
    """What has to be added to the model's weights; UsageError for a site that isn't foldable."""
    found = _maps(vlm, list(maps))
    by_name: dict[str, tuple[nn.Linear, dict[bool, Affine]]] = {}
    for site, affine in maps.items():
        told = found[site]
        if isinstance(told, Obstacle):
            raise UsageError(f"The edit at {site} can't be folded into weights: {told.why}.")
        name, linear = told
        sides = by_name.setdefault(name, (linear, {}))[1]
        sides[site.kind == "ffn_neurons"] = affine
    return [_fold(name, linear, sides) for name, (linear, sides) in by_name.items()]


@contextmanager
def folded(made: Sequence[Fold]) -> Iterator[None]:
    """The weights with what is folded into them while the context is open, then as they were."""
    with ExitStack() as stack:
        for fold in made:
            own = fold.linear.weight, fold.linear.bias
            stack.callback(partial(_put, fold.linear, *own))
            bias = fold.bias()
            _put(
                fold.linear,
                nn.Parameter(fold.weight(), requires_grad=False),
                None if bias is None else nn.Parameter(bias, requires_grad=False),
            )
        yield


class FoldedWeights(Defense):
    """What is folded into weights, as a defense that can be measured."""

    name = "folded"
    touches: Touches = "weights"

    def __init__(self, made: Sequence[Fold]) -> None:
        self.made = made

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Other weights while the context is open."""
        with folded(self.made):
            yield


def bias_settings(vlm: VLM, made: Sequence[Fold]) -> dict[str, bool]:
    """Settings of the text model under which its class has the biases that are needed.

    UsageError where it has none to offer.
    """
    needed = [fold for fold in made if fold.shifts and fold.linear.bias is None]
    names = {fold.name: _setting(fold.name) for fold in needed}
    config = copy.deepcopy(vlm.model.config)
    text = config.get_text_config()
    for name in names.values():
        if name is not None and hasattr(text, name):
            setattr(text, name, True)
    known = expected(vlm, config) if needed else {}
    for fold in needed:
        if f"{fold.name}.bias" not in known:
            raise UsageError(
                f"The edit that {fold.name} would hold has a centre, which is a bias, and "
                f"{type(vlm.model).__name__} has no place for one there; leave it out with --drop "
                "centres, by which the loss is measured, or use the repair itself."
            )
    return {name: True for name in names.values() if name is not None}


def expected(vlm: VLM, config: Any) -> dict[str, Tensor]:
    """Names and shapes of all tensors of the model's class under another configuration."""
    with torch.device("meta"):
        return dict(type(vlm.model)(config).state_dict())


def _setting(name: str) -> str | None:
    return next((_BIASES[part] for part in name.split(".") if part in _BIASES), None)


def _fold(name: str, linear: nn.Linear, sides: Mapping[bool, Affine]) -> Fold:
    weight = linear.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64)
    if linear.bias is not None:
        bias = linear.bias.detach().double().cpu()
    ups, downs, shift = [], [], torch.zeros_like(bias)
    if True in sides:  # of what the map reads
        write, read, offset = _tensors(sides[True])
        ups.append(-weight @ write)
        downs.append(read.T)
        shift = weight @ (write @ offset)
        weight, bias = weight + ups[0] @ downs[0], bias + shift
    if False in sides:  # of what it writes
        write, read, offset = _tensors(sides[False])
        ups.append(-write)
        downs.append(read.T @ weight)
        shift = shift - write @ (read.T @ bias - offset)
    return Fold(name, linear, torch.cat(ups, dim=1), torch.cat(downs), shift)


def _tensors(affine: Affine) -> tuple[Tensor, Tensor, Tensor]:
    parts = affine.write, affine.read, affine.offset
    return tuple(torch.from_numpy(part) for part in parts)  # pyright: ignore[reportReturnType]


def _put(linear: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
    linear.weight, linear.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]


def _maps(vlm: VLM, sites: Sequence[Site]) -> dict[Site, tuple[str, nn.Linear] | Obstacle]:
    """For each site the linear map that writes or, of neurons, reads it, or why there is none."""
    candidates = {site: _candidates(vlm, site) for site in vlm.anatomy.check(sites)}
    same = _writing(vlm, candidates)
    names = {id(module): name for name, module in vlm.model.named_modules()}
    found: dict[Site, tuple[str, nn.Linear] | Obstacle] = {}
    for site, modules in candidates.items():
        fitting = [module for module in modules if (site, module) in same]
        if len(fitting) != 1:
            found[site] = Obstacle("sites", _why(vlm, site))
        elif fitting[0].weight.dtype not in _FLOATS:
            kind = str(fitting[0].weight.dtype).removeprefix("torch.")
            found[site] = Obstacle("sites", f"the weights at {site} are quantised ({kind})")
        else:
            found[site] = names[id(fitting[0])], fitting[0]
    return found


def _candidates(vlm: VLM, site: Site) -> list[nn.Linear]:
    if site.kind == "layer_out":
        return []
    return [m for m in vlm.anatomy.module(site).modules() if isinstance(m, nn.Linear)]


def _writing(vlm: VLM, candidates: Mapping[Site, list[nn.Linear]]) -> set[tuple[Site, nn.Linear]]:
    """Those of the candidates whose output is that of the site's module, in one pass."""
    at_sites: dict[Site, Tensor] = {}
    written: dict[nn.Linear, Tensor] = {}

    def keep(place: dict[Any, Tensor], key: Any, module: nn.Module, given: Any, out: Any) -> None:
        # A copy, since experts are added in place to what a shared one has written.
        place[key] = (out[0] if isinstance(out, tuple) else out).clone()

    with ExitStack() as stack:
        for site, modules in candidates.items():
            for module in modules:
                handle = module.register_forward_hook(partial(keep, written, module))
                stack.callback(handle.remove)
            handle = vlm.anatomy.module(site).register_forward_hook(partial(keep, at_sites, site))
            stack.callback(handle.remove)
        vlm.forward(vlm.batch(probe(vlm.sees)), logits_to_keep=1)
    return {
        (site, module)
        for site, modules in candidates.items()
        for module in modules
        if module in written and torch.equal(written[module], at_sites[site])
    }


def _why(vlm: VLM, site: Site) -> str:
    if site.kind == "layer_out":
        return f"{site} is a sum that no linear map writes (fit at ffn_out or mhsa_out instead)"
    module = type(vlm.anatomy.module(site)).__name__
    return f"what is at {site} comes out of a {module}, not of one linear map"
