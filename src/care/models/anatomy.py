"""Where sites are inside a Hugging Face model.

Layers are found through `get_decoder()` and checked against the configuration, parts of a layer by
structure (`blocks`), never guessed by name. Layers that attend to the picture alone (Mllama's
cross-attention) aren't counted: passes without a picture skip them, so nothing can be read there
that holds for every request. Not here: what sites are (`sites`).
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from care.errors import ModelError, SiteError
from care.models import blocks
from care.models.devices import weight_of
from care.models.experts import Experts, experts_of, written_by
from care.models.neuron_table import NeuronTable
from care.models.sites import Site, SiteKind

_EXPERT_WIDTH = "moe_intermediate_size"
"""Where a configuration says the width of its experts."""


@dataclass(frozen=True)
class Anatomy:
    """The verified parts of one model that sites refer to; build it with `Anatomy.of`."""

    decoder: nn.Module
    """The text model that holds the layers."""

    layers: nn.ModuleList
    """The L decoder layers that every pass goes through."""

    width: int
    """Residual width D."""

    ffn_width: int
    """Number F of neurons of one FFN; where all are of experts, what the configuration says."""

    image_token_id: int | None
    """Placeholder token in whose place a visual token is; None of a model that reads text alone."""

    @property
    def n_layers(self) -> int:
        """Number L of decoder layers."""
        return len(self.layers)

    @classmethod
    def of(cls, model: Any) -> "Anatomy":
        """Find and verify the parts of `model`: of Hugging Face's, one that answers in text.

        Raises ModelError if it takes images but names no token in whose place they are, or nothing
        without them, has an encoder for the request, writes by diffusion, has no decoder of the
        configured depth, or a layer lacks mixer or FFN.
        """
        name = type(model).__name__
        config = getattr(model, "config", None)
        if config is None or not callable(getattr(model, "get_decoder", None)):
            raise ModelError(
                f"{name} is not a Hugging Face model with a decoder; pass an image-text-to-text "
                "model such as LlavaForConditionalGeneration."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{name} can't be used: an encoder reads the request, and sites are those of a "
                "decoder that does; use a model with a decoder alone."
            )
        if hasattr(config, "canvas_length"):
            raise ModelError(
                f"{name} can't be used: it refines a canvas of many tokens at once (text "
                "diffusion), and roles are those of tokens that follow each other; use a model "
                "that writes one token after another."
            )
        taken = inspect.signature(model.forward).parameters
        if "pixel_values" in taken and taken["pixel_values"].default is inspect.Parameter.empty:
            raise ModelError(
                f"{name} can't be used: it takes no request without a picture, and generates from "
                "embeddings whose tokens its language model isn't told; use a model that reads "
                "pictures among the tokens of a text."
            )
        text_config = config.get_text_config()
        decoder = _decoder(model)
        layers = _decoder_layers(decoder, text_config, name)
        return cls(
            decoder=decoder,
            layers=layers,
            width=_width(model, text_config, name),
            ffn_width=_ffn_width(layers, text_config, name),
            image_token_id=_image_token(model, config, name),
        )

    def sites(self, kind: SiteKind) -> list[Site]:
        """All L sites of one kind, first layer first; neurons of experts have more
        (`neurons.columns`)."""
        return [Site(layer, kind) for layer in range(self.n_layers)]

    @cached_property
    def neurons(self) -> NeuronTable:
        """Where every FFN neuron has its place; SiteError if some can't be reached."""
        widths, experts = [], []
        for index, layer in enumerate(self.layers):
            found = self._experts(index)
            if found is None:
                own = getattr(blocks.down(layer), "in_features", self.ffn_width)
                widths.append((int(own),))
            else:
                widths.append(found.widths)
            experts.append(found is not None)
        return NeuronTable(tuple(widths), tuple(experts))

    def site_width(self, site: Site) -> int:
        """Width of the activations at `site`: of `ffn_neurons` their number, D otherwise."""
        if site.kind != "ffn_neurons":
            return self.width
        own = self.neurons.columns[site]
        return own.stop - own.start

    def routed(self, site: Site) -> tuple[nn.Module, int] | None:
        """Of neurons of an expert that a router chooses: what holds its weights, and its number."""
        if site.expert is None:
            return None
        experts = self._experts(site.layer)
        if experts is None or site.expert >= experts.count:
            return None
        return experts.routed, site.expert

    def output_columns(self, site: Site) -> Tensor:
        """What a unit of each of the neurons at `site` writes (D, F)."""
        routed = self.routed(site)
        return weight_of(self.module(site)) if routed is None else written_by(*routed)

    def _experts(self, layer: int) -> Experts | None:
        found = experts_of(self.layers[layer])
        if isinstance(found, str):
            raise SiteError(
                f"Neurons of layer {layer} can't be reached: {found}; use ffn_out instead."
            )
        return found

    def module(self, site: Site) -> nn.Module:
        """The module whose output is the activation at `site` (for `ffn_neurons`: whose input is,
        or, of neurons of an expert, what holds its weights).

        Raises SiteError if the layer or expert is out of range, or neurons can't be reached.
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
            return blocks.writer(layer, "mhsa")
        if site.kind == "ffn_out":
            return blocks.writer(layer, "ffn")
        return self._writes(site)

    def _writes(self, site: Site) -> nn.Module:
        """The last map of an FFN, or what has it."""
        experts, down = self._experts(site.layer), blocks.down(self.layers[site.layer])
        if experts is None:
            if site.expert is not None:
                raise SiteError(f"Site {site} does not exist: the FFN there is not one of experts.")
            assert down is not None
            return down
        last = len(experts.widths) - 1
        if site.expert is None:
            raise SiteError(
                f"Site {site} is one for each expert; name one, from {site}.0 to {site}.{last}, or "
                "use ffn_out instead."
            )
        if site.expert > last:
            raise SiteError(f"Site {site} does not exist: there are experts 0 to {last}.")
        if site.expert < experts.count:
            return experts.routed
        assert experts.shared is not None
        return experts.shared

    def check(self, sites: Iterable[Site]) -> list[Site]:
        """The sites as a list, each verified to exist; SiteError for an empty list."""
        checked = list(sites)
        if not checked:
            raise SiteError("No sites were given; name at least one, for example 16.ffn_out.")
        for site in checked:
            self.module(site)
        return checked


def _decoder(model: Any) -> nn.Module:
    """What `get_decoder` gives; where that still has a head, the text model within."""
    decoder = model.get_decoder()
    while not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        inner = [getattr(decoder, name, None) for name in ("model", "decoder")]
        found = next((part for part in inner if isinstance(part, nn.Module)), None)
        if found is None:
            break
        decoder = found
    return decoder


def _decoder_layers(decoder: nn.Module, text_config: Any, name: str) -> nn.ModuleList:
    layers = getattr(decoder, "layers", None)
    expected = getattr(text_config, "num_hidden_layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != expected:
        found = len(layers) if isinstance(layers, nn.ModuleList) else "no"
        raise ModelError(
            f"{name} can't be used: its decoder has {found} layers where the configuration says "
            f"{expected}, so the text layers can't be told with certainty."
        )
    own = nn.ModuleList(layer for layer in layers if not blocks.crosses(layer))
    for index, layer in enumerate(layers):
        why = "" if blocks.crosses(layer) else blocks.lacking(layer)
        if why:
            raise ModelError(
                f"{name} can't be used: layer {index} ({type(layer).__name__}) {why}; only layers "
                "that add a mixer's and an FFN's output to one residual stream are supported."
            )
    return own if len(own) < len(layers) else layers


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
    downs = (blocks.down(layer) for layer in layers)
    widths = (getattr(down, "in_features", None) for down in downs)
    stated = (getattr(text_config, key, None) for key in ("intermediate_size", _EXPERT_WIDTH))
    width = next((found for found in (*widths, *stated) if found), None)
    if not isinstance(width, int):
        raise ModelError(f"{name} can't be used: the width of its FFN can't be established.")
    return width


def image_token_id(config: Any) -> int | None:
    """The placeholder id in a model's configuration; None if it names none.

    Not the processor's attribute: that of some families is another token.
    """
    found = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
    return next((value for value in found if isinstance(value, int)), None)


def _image_token(model: Any, config: Any, name: str) -> int | None:
    token = image_token_id(config)
    if token is None and "pixel_values" in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{name} can't be used: its configuration names no image token, so what holds a "
            "picture can't be told; use a model that puts pictures in the place of tokens."
        )
    return token
