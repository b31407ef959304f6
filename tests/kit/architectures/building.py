"""A tiny random model and its processor, of any family that `families` describes.

The model is of the family's own configuration and class (`shrinking`). The processor is its own
class too, around its own image processor, with a tiny tokenizer that has its special tokens. Where
that can't be had (most need torchvision, or files of a checkpoint) a stub stands in for the image
processor alone, or for both, and the family says so.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin

from kit.architectures.shrinking import WIDTH, shrunk, with_changes
from kit.architectures.tokens import NAMED, special_tokens, template, tokenizer_for


@dataclass(frozen=True)
class Family:
    """What has to be said of a family beyond its name."""

    image: str = "<image>"
    """What its chat template writes where an image is."""
    token: str = ""
    """The token in whose place a visual token is; empty: `image`."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Tokens that its tokenizer calls otherwise than `tokens.NAMED`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its configuration, by dotted path, that the shrinking gets wrong."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its image processor."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its processor; what it doesn't take is set on it."""
    uses: tuple[str, str] = ("", "")
    """Classes of processor and image processor, where transformers' own tables name none."""
    stub: Callable[[Any], Any] | None = None
    """Makes what stands in for the processor, of a tokenizer; None: it is the family's own."""
    first: str = ""
    """What its chat template writes first."""
    adds: tuple[str, ...] = ()
    """Parts of a layer that add to the residual stream beside mixer and FFN."""
    apart: bool = False
    """Whether pictures come in beside the sequence, not in the place of tokens."""
    missing: str = ""
    """What keeps it from being built here, if something does."""
    note: str = ""
    """What the page says of it beside what came of the checks."""
    upstream: Mapping[str, str] = field(default_factory=dict)
    """Checks that fail for what transformers does with its model, and what that is."""
    mend: Callable[[], None] | None = None
    """Puts right what keeps its model from running in the installed transformers."""


def build(name: str, family: Family, seed: int = 0) -> tuple[Any, Any]:
    """A model of the family called `name`, and its processor."""
    if family.mend is not None:
        family.mend()
    tokenizer = tokenizer_for({"image_token": family.token or family.image, **family.named})
    tokenizer.chat_template = template(family.image, family.first)
    return _model(name, family, tokenizer, seed), processor_of(name, family, tokenizer)


def processor_of(name: str, family: Family, tokenizer: Any) -> Any:
    """The processor of a family around a tokenizer."""
    if family.stub is not None:
        return family.stub(tokenizer)
    kind = getattr(transformers, family.uses[0] or PROCESSOR_MAPPING_NAMES[name])
    given = {
        "tokenizer": tokenizer,
        "image_processor": image_processor(name, family),
        "chat_template": tokenizer.chat_template,
        **family.processor,
    }
    taken = inspect.signature(kind.__init__).parameters
    given = dict.fromkeys(("video_processor", "feature_extractor")) | given
    with _parts_unchecked():
        made = kind(**{key: value for key, value in given.items() if key in taken or key in _MIXED})
    made.chat_template = tokenizer.chat_template
    for key in family.processor.keys() - taken.keys() - {*_MIXED}:
        setattr(made, key, family.processor[key])
    return made


_MIXED = ("image_processor", "tokenizer")


@contextmanager
def _parts_unchecked() -> Iterator[None]:
    """While open, a processor may be made without those parts that videos need."""
    with (
        patch.object(ProcessorMixin, "check_argument_for_proper_class"),
        patch.object(processing_smolvlm, "num2words", str),
    ):
        yield


def image_processor(name: str, family: Family) -> Any:
    """The image processor of a family, in its version without torchvision."""
    kind = family.uses[1] or IMAGE_PROCESSOR_MAPPING_NAMES[name]["pil"]
    return getattr(transformers, kind)(**family.images)


def _model(name: str, family: Family, tokenizer: Any, seed: int) -> Any:
    known = AutoConfig.for_model(name)
    named = {"image_token": family.token or family.image, "bos_token": "<bos>", **family.named}
    named = {**NAMED, "pad_token": "<pad>", "eos_token": "<eos>", **named}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in named.items()}
    fields = with_changes(shrunk(known, ids, len(tokenizer)), family.config)
    for key in ("transformers_version", "architectures", "model_type"):
        fields.pop(key, None)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(type(known)(**fields)).eval()
    _enlarge(model)
    if model.can_generate():
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _enlarge(model: Any) -> None:
    """Weights so large that logits are far apart, and answers of ordinary tokens alone."""
    for key, weight in model.named_parameters():
        if weight.ndim < 2:
            if key.endswith(
                "gate"
            ):  # closed in an untrained model: nothing of a picture would pass
                weight.fill_(0.7)
        elif any(word in key for word in ("embed", "position", "pos_")):
            weight.normal_(0, 0.5)
        elif "experts" in key and weight.ndim == 3:
            weight.normal_(0, 1.5 * WIDTH**-0.5)
        else:
            weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
    head = model.get_output_embeddings()
    if head is not None:
        head.weight[: len(special_tokens())] = 0
