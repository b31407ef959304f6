"""Where things are inside a Hugging Face vision-language model: decoder layers, sites, token roles.

A *site* is (layer index, kind). The kinds are defined by what is added to the residual stream:

    h_mid = h_in + mhsa_out,    layer_out = h_mid + ffn_out,    ffn_out = W_down · ffn_neurons

so `ffn_out` is the output of the norm that follows the MLP where a family has one (Gemma 3), and
of the MLP itself elsewhere. Layers are found through `get_decoder()` and checked against the
configuration, never guessed by name. Video tokens are not told apart: they count as text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from care.errors import ModelError, SiteError

SiteKind = Literal["ffn_out", "mhsa_out", "layer_out", "ffn_neurons"]
Scope = Literal["image", "text", "decision", "response", "all"]


class Role(IntEnum):
    """Role of one token position; the numbers index per-role statistics of shape (4, D)."""

    PAD = 0
    TEXT = 1
    IMAGE = 2
    RESPONSE = 3


_SCOPE_ROLES: dict[str, Role] = {
    "image": Role.IMAGE,
    "text": Role.TEXT,
    "response": Role.RESPONSE,
}


@dataclass(frozen=True, order=True)
class Site:
    """A place where activations are read or edited; `str(Site(16, "ffn_out")) == "16.ffn_out"`."""

    layer: int
    """Zero-based index of the decoder layer."""

    kind: SiteKind
    """`ffn_out`, `mhsa_out`, `layer_out` (width D) or `ffn_neurons` (width F)."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(SiteKind):
            raise SiteError(
                f"Site kind {self.kind!r} is unknown; use one of {', '.join(get_args(SiteKind))}."
            )
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise SiteError(
                f"Layer {self.layer!r} is not a layer index; layers count from 0 upwards."
            )

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Inverse of `str`: `Site.parse("16.ffn_out")`; SiteError if the text has another form."""
        layer, dot, kind = str(text).strip().partition(".")
        if not dot or not layer.isascii() or not layer.isdigit():
            raise SiteError(f"{text!r} is not a site; write LAYER.KIND, for example 16.ffn_out.")
        return cls(int(layer), kind)  # pyright: ignore[reportArgumentType]  checked on creation


def scope_mask(roles: Tensor, scopes: Sequence[Scope]) -> Tensor:
    """Boolean mask (B, T) of the positions in `scopes`.

    "all" is all but padding; "decision" is the last position of a prompt, where the first answer
    token is decided ("text" includes it). `roles` must reach the end of the prompt, for roles of a
    piece of one don't tell that more of it follows.

    Raises SiteError for an empty list or an unknown scope.
    """
    if isinstance(scopes, str):
        scopes = (scopes,)  # pyright: ignore[reportAssignmentType]  a forgiving call
    unknown = [scope for scope in scopes if scope not in get_args(Scope)]
    if unknown or not scopes:
        given = repr(unknown[0]) if unknown else "none"
        raise SiteError(f"Scope {given} is unknown; use some of {', '.join(get_args(Scope))}.")
    if "all" in scopes:
        return roles != Role.PAD
    mask = torch.zeros_like(roles, dtype=torch.bool)
    for scope in scopes:
        mask |= _decisions(roles) if scope == "decision" else roles == _SCOPE_ROLES[scope]
    return mask


def reaches_answers(scopes: Sequence[Scope]) -> bool:
    """Whether `scopes` hold tokens of answers; if not, a decode step has nothing in scope."""
    return not {"response", "all"}.isdisjoint(scopes)


def _decisions(roles: Tensor) -> Tensor:
    """Mask (B, T) of each row's last position before its answer; none in a decode step."""
    length = roles.shape[1]
    prompt = (roles == Role.TEXT) | (roles == Role.IMAGE)
    last = length - 1 - prompt.flip(1).int().argmax(1)
    places = torch.arange(length, device=roles.device)
    return (places == last[:, None]) & prompt


def roles_of_inputs(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_token_id: int,
    *,
    past: int = 0,
    prompt: int | None = None,
    pad_token_id: int | None = None,
) -> Tensor:
    """Roles (B, T) of one forward pass, from what the model is given.

    `input_ids` (B, T) are the tokens of this pass, `past` the number of positions before it, and
    the first `prompt` positions of the sequence are the prompt's; by default all of a pass that
    begins one, and none of a pass that continues one. The rest is RESPONSE, and there the padding
    that `generate` feeds to finished rows is PAD. Without a 2-D mask, leading padding tokens are
    PAD. Raises SiteError for a mask that doesn't reach over the pass.
    """
    length = input_ids.shape[1]
    if prompt is None:
        prompt = past if past else length
    asked = max(min(prompt - past, length), 0)
    roles = torch.full_like(input_ids, int(Role.TEXT if asked else Role.RESPONSE))
    if asked:
        roles[input_ids == image_token_id] = int(Role.IMAGE)
        roles[:, asked:] = int(Role.RESPONSE)
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        here = _mask_of_pass(attention_mask, past, length).to(input_ids.device)
        roles = roles.masked_fill(here == 0, int(Role.PAD))
    elif attention_mask is not None and pad_token_id is not None and asked:
        leading = (input_ids == pad_token_id).long().cumprod(dim=1).bool()
        roles = roles.masked_fill(leading, int(Role.PAD))
    if asked < length and pad_token_id is not None:
        finished = (roles == Role.RESPONSE) & (input_ids == pad_token_id)
        roles = roles.masked_fill(finished, int(Role.PAD))
    return roles


def _mask_of_pass(attention_mask: Tensor, past: int, length: int) -> Tensor:
    """Columns of a mask (B, ·) over `length` positions after `past` others.

    It may go on, over what a cache of fixed size doesn't hold yet.
    """
    if attention_mask.shape[1] < length:
        raise SiteError(
            f"The attention mask has {attention_mask.shape[1]} columns for a pass over {length} "
            "tokens; pass one that covers all tokens."
        )
    if attention_mask.shape[1] >= past + length:
        return attention_mask[:, past : past + length]
    return attention_mask[:, -length:]


@dataclass(frozen=True)
class Anatomy:
    """The verified parts of one model that sites refer to; build it with `Anatomy.of`."""

    layers: nn.ModuleList
    """The L decoder layers of the text model."""

    width: int
    """Residual width D."""

    ffn_width: int
    """Number F of FFN neurons per layer."""

    image_token_id: int
    """Placeholder token whose embedding is replaced by a visual token."""

    @property
    def n_layers(self) -> int:
        """Number L of decoder layers."""
        return len(self.layers)

    @classmethod
    def of(cls, model: Any) -> "Anatomy":
        """Find and verify the parts of `model`, any Hugging Face image-text-to-text model.

        Raises ModelError if it takes no images, has no decoder of the configured depth, or a
        layer lacks attention or FFN.
        """
        name = type(model).__name__
        config = getattr(model, "config", None)
        if config is None or not callable(getattr(model, "get_decoder", None)):
            raise ModelError(
                f"{name} is not a Hugging Face model with a decoder; pass an image-text-to-text "
                "model such as LlavaForConditionalGeneration."
            )
        text_config = config.get_text_config()
        layers = _decoder_layers(model, text_config, name)
        return cls(
            layers=layers,
            width=_width(model, text_config, name),
            ffn_width=_ffn_width(layers, text_config, name),
            image_token_id=image_token_id(config, name),
        )

    def sites(self, kind: SiteKind) -> list[Site]:
        """All L sites of one kind, first layer first."""
        return [Site(layer, kind) for layer in range(self.n_layers)]

    def site_width(self, site: Site) -> int:
        """Width of the activations at `site`: F for `ffn_neurons`, D otherwise."""
        return self.ffn_width if site.kind == "ffn_neurons" else self.width

    def module(self, site: Site) -> nn.Module:
        """The module whose output is the activation at `site` (for `ffn_neurons`: whose input is).

        Raises SiteError if the layer is out of range or the layer has no `down_proj`.
        """
        if not 0 <= site.layer < self.n_layers:
            raise SiteError(
                f"Site {site} does not exist: this model has {self.n_layers} layers, "
                f"0 to {self.n_layers - 1}."
            )
        layer = self.layers[site.layer]
        if site.kind == "layer_out":
            return layer
        if site.kind == "mhsa_out":
            return _residual_writer(layer, "mhsa")
        if site.kind == "ffn_out":
            return _residual_writer(layer, "ffn")
        down_proj = getattr(layer.mlp, "down_proj", None)
        if not isinstance(down_proj, nn.Module):
            raise SiteError(
                f"Site {site} does not exist: {type(layer.mlp).__name__} has no down_proj; "
                "use ffn_out instead."
            )
        return down_proj

    def check(self, sites: Iterable[Site]) -> list[Site]:
        """The sites as a list, each verified to exist; SiteError for an empty list."""
        checked = list(sites)
        if not checked:
            raise SiteError("No sites were given; name at least one, for example 16.ffn_out.")
        for site in checked:
            self.module(site)
        return checked


def _residual_writer(layer: nn.Module, part: Literal["mhsa", "ffn"]) -> nn.Module:
    """The last module of a sublayer before the residual add.

    Gemma 2/3 and OLMo 2 normalise a sublayer's output before the add; in those (and only those)
    `post_attention_layernorm` is such an output norm. GLM-4 has its own names.
    """
    if part == "mhsa":
        names = ["post_self_attn_layernorm"]
        if hasattr(layer, "post_feedforward_layernorm"):
            names.append("post_attention_layernorm")
        names.append("self_attn")
    else:
        names = ["post_feedforward_layernorm", "post_mlp_layernorm", "mlp"]
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _decoder_layers(model: Any, text_config: Any, name: str) -> nn.ModuleList:
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    expected = getattr(text_config, "num_hidden_layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != expected:
        found = len(layers) if isinstance(layers, nn.ModuleList) else "no"
        raise ModelError(
            f"{name} can't be used: its decoder has {found} layers where the configuration says "
            f"{expected}, so the text layers can't be told with certainty."
        )
    for index, layer in enumerate(layers):
        missing = [part for part in ("self_attn", "mlp") if not hasattr(layer, part)]
        if missing:
            raise ModelError(
                f"{name} can't be used: layer {index} ({type(layer).__name__}) has no "
                f"{' and no '.join(missing)}; only attention + FFN decoders are supported."
            )
    return layers


def _width(model: Any, text_config: Any, name: str) -> int:
    width = int(text_config.hidden_size)
    embedding = model.get_input_embeddings()
    found = getattr(embedding, "embedding_dim", width)
    if found != width:
        raise ModelError(
            f"{name} can't be used: token embeddings have width {found}, the configuration says "
            f"{width}."
        )
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"{name} has no language-model head; load it with AutoModelForImageTextToText."
        )
    return width


def _ffn_width(layers: nn.ModuleList, text_config: Any, name: str) -> int:
    down_proj = getattr(layers[0].mlp, "down_proj", None)
    width = getattr(down_proj, "in_features", None) or getattr(
        text_config, "intermediate_size", None
    )
    if not isinstance(width, int):
        raise ModelError(f"{name} can't be used: the width of its FFN can't be established.")
    return width


def image_token_id(config: Any, name: str) -> int:
    """The placeholder id in a model's configuration; ModelError if it takes no images.

    Not the processor's attribute: that of some families is another token.
    """
    for key in ("image_token_id", "image_token_index"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    raise ModelError(
        f"{name} takes no images (its configuration names no image token); use a "
        "vision-language model."
    )
