"""Models and processors from the Hub or a folder, and whether the two fit each other.

What goes wrong while loading becomes one sentence. Not here: what is done with them (`vlm`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from care.anatomy import image_token_id
from care.batches import encode, render
from care.errors import DataError, MissingDependencyError, ModelError
from care.examples import Example


def load_pretrained(
    name: str, dtype: Any, common: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Model and processor of this name; `common` goes to every loader, `options` to the model's.

    Options that are None are left out. Raises ModelError and MissingDependencyError.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    given = {key: value for key, value in options.items() if value is not None}
    try:
        # One small file first: a wrong name or a model without eyes shows before the weights.
        _fetch_config(name, common.get("revision"))
        image_token_id(AutoConfig.from_pretrained(name, **common), name)
        processor = AutoProcessor.from_pretrained(name, **common)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **common, **given)
    except ModelError:
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise MissingDependencyError(f"Loading {name} needs more: {reason}") from error
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise _loading_error(name, error) from error
    return model, processor


def _fetch_config(name: str, revision: str | None) -> None:
    """Have config.json at hand, from the folder, the cache or the Hub.

    Where the Hub can't be reached, a request is tried for half a minute; the loaders of
    transformers would ask for several files before they give up.
    """
    from huggingface_hub import hf_hub_download

    if not Path(name).exists():
        hf_hub_download(name, "config.json", revision=revision)


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer inside a processor; ModelError if it isn't a processor of a chat model."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "apply_chat_template"):
        raise ModelError(
            f"{type(processor).__name__} is not a processor with a tokenizer; pass the model's "
            "AutoProcessor."
        )
    return tokenizer


def check_processor(processor: Any, image_token_id: int, name: str) -> None:
    """One tiny picture through template and processor must yield the model's image token."""
    templates = (
        getattr(processor, "chat_template", None),
        getattr(tokenizer_of(processor), "chat_template", None),
    )
    if not any(templates):
        raise ModelError(
            f"The processor of {name} has no chat template; set processor.chat_template."
        )
    probe = Example("probe", "ping", images=(Image.new("RGB", (64, 64), "grey"),))
    try:
        text = render(processor, probe)
        if "ping" not in text or "'type'" in text:
            raise ModelError(
                f"The chat template of {name} doesn't understand content lists of images and text."
            )
        encode(processor, [probe], [[]], image_token_id)
    except DataError as error:
        raise ModelError(
            f"{name} can't encode a message with an image, so model and processor don't "
            f"belong together: {error}"
        ) from error


def first_tokens(tokenizer: Any, openers: Sequence[str]) -> list[int]:
    """First token of each opener, with and without a space before it."""
    ids = set()
    for opener in openers:
        for text in (opener, " " + opener):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:1]
            # A lone space or the unknown token would match far more than refusals.
            if tokenizer.decode(tokens).strip() and tokenizer.unk_token_id not in tokens:
                ids.update(tokens)
    return sorted(ids)


def _loading_error(name: str, error: Exception) -> ModelError:
    first_line = str(error).strip().split("\n")[0]
    if "Unrecognized configuration class" in str(error):
        return ModelError(
            f"{name} is not a vision-language model that transformers can load "
            "(AutoModelForImageTextToText doesn't know its configuration)."
        )
    if isinstance(error, OSError):
        return ModelError(
            f"The model {name} could not be loaded; check the name, the network and access rights "
            f"({first_line})."
        )
    return ModelError(f"The model {name} could not be loaded ({first_line}).")
