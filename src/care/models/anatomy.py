"""Where sites are inside a Hugging Face vision-language model.

Layers are found through `get_decoder()` and checked against the configuration, never guessed by
name. `ffn_out` is the output of the norm that follows the MLP where a family has one (Gemma 3), and
of the MLP itself elsewhere; likewise `mhsa_out`. Not here: what sites are (`care.models.sites`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from care.errors import ModelError, SiteError
from care.models.sites import Site, SiteKind


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
