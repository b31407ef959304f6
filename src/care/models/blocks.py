"""How one decoder layer is made up, whatever its family calls the parts.

A layer adds twice to the residual stream: what its *mixer* brings over from other positions
(attention, linear attention, a short convolution), and what its *FFN* computes at each:

    h_mid = h_in + c · mhsa_out,    layer_out = h_mid + c · ffn_out

Parts are found by structure: a name stands for one only where a layer has it, and the last module
before an addition is the one that writes. The number c is 1 but in families that scale what they
add (Granite, HyperCLOVA X); a site is what stands before it, for it changes no direction. A layer
of several residual streams, or one that weighs its input anew, has no such sites.
"""

from collections.abc import Iterable
from typing import Literal

from torch import nn

Part = Literal["mhsa", "ffn"]

MIXERS = ("self_attn", "linear_attn", "conv")
"""What mixes positions in a layer: the first of these that it has."""

FFNS = ("mlp", "feed_forward")
"""What computes at each position; where it stands in the layer itself, its two maps are these:"""
_FFN_IN_LAYER = ("fc1", "fc2")

CROSS = "cross_attn"
"""Mixes in the picture, from outside of the sequence (Mllama)."""

DOWN = ("down_proj", "fc2", "w2", "dense_4h_to_h")
"""The last map of an FFN, by which its neurons write."""

_WRITERS: dict[Part, tuple[str, ...]] = {
    # GLM-4 and T5Gemma 2; Inkling; LFM3; HyperCLOVA X
    "mhsa": ("post_self_attn_layernorm", "attn_sconv", "post_operator_norm", "post_norm1"),
    # Gemma 2 and 3, OLMo 2, EXAONE 4; GLM-4; Inkling; LFM3; HyperCLOVA X
    "ffn": (
        "post_feedforward_layernorm",
        "post_mlp_layernorm",
        "mlp_sconv",
        "post_ffn_norm",
        "post_norm2",
    ),
}
"""Modules between a part and the addition, by family."""

_FINAL_NORMS = (
    "norm",
    "final_layernorm",  # Phi, Falcon H1
    "final_norm",  # RecurrentGemma
    "final_layer_norm",  # OPT
    "layer_norm",  # XGLM
    "embedding_norm",  # LFM2, which calls so what others call `norm`
)
"""What normalises the residual stream after the last layer: the first that a decoder has."""

_NOT_A_SUM = {
    "attn_hc": "keeps several residual streams",
    "attn_hyper_connection": "keeps several residual streams",
    "mlp_input": "draws on the outputs of other layers anew",
    "post_attention_residual_gate": "weighs its residual stream before it adds to it",
}
"""Modules of layers that don't add to one residual stream, and what such a layer does."""


def lacking(layer: nn.Module) -> str:
    """Why a layer has no sites, as the end of a sentence; empty where it has them."""
    if odd := next((does for name, does in _NOT_A_SUM.items() if hasattr(layer, name)), ""):
        return f"{odd}, so that what its parts add can't be told"
    missing = [
        what
        for what, found in (
            (f"mixer ({', '.join(MIXERS)})", _first(layer, MIXERS)),
            (f"FFN ({', '.join(FFNS)})", _first(layer, FFNS) or _ffn_in(layer)),
        )
        if found is None
    ]
    return f"has no {' and no '.join(missing)}" if missing else ""


def crosses(layer: nn.Module) -> bool:
    """Whether a layer attends to the picture alone, so that passes without one skip it."""
    return hasattr(layer, CROSS) and _first(layer, MIXERS) is None


def mixer(layer: nn.Module) -> nn.Module:
    """What brings over from other positions; the layer has it (`lacking`)."""
    found = _first(layer, MIXERS)
    assert found is not None
    return found


def ffn(layer: nn.Module) -> nn.Module:
    """What computes at each position; of one that stands in the layer itself, its last map."""
    found = _first(layer, FFNS) or _ffn_in(layer)
    assert found is not None
    return found


def entrances(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The modules by which the residual stream, normalised, enters mixer and FFN."""
    first = getattr(layer, _FFN_IN_LAYER[0], None)
    return mixer(layer), _first(layer, FFNS) or (first if first is not None else ffn(layer))


def writer(layer: nn.Module, part: Part) -> nn.Module:
    """The last module of a part before the addition.

    Gemma 2 and 3 and OLMo 2 normalise a part's output before the addition; in those (and only
    those) `post_attention_layernorm` is such an output norm.
    """
    names = list(_WRITERS[part])
    if part == "mhsa" and hasattr(layer, "post_feedforward_layernorm"):
        names.append("post_attention_layernorm")
    return _first(layer, names) or (mixer(layer) if part == "mhsa" else ffn(layer))


def down(layer: nn.Module) -> nn.Module | None:
    """The map by which the FFN's neurons write; None of an FFN of experts."""
    part = ffn(layer)
    return part if part is _ffn_in(layer) else _first(part, DOWN)


def final_norm(decoder: nn.Module) -> nn.Module | None:
    """What stands between the last layer and the head; None where it can't be told."""
    return _first(decoder, _FINAL_NORMS)


def _ffn_in(layer: nn.Module) -> nn.Module | None:
    """The last map of an FFN whose two maps stand in the layer itself (OPT)."""
    first, last = (getattr(layer, name, None) for name in _FFN_IN_LAYER)
    return last if isinstance(first, nn.Module) and isinstance(last, nn.Module) else None


def _first(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((part for part in found if isinstance(part, nn.Module)), None)
