"""Models and processors from the Hub or a folder, and whether the two fit each other.

A model whose configuration names no image token is loaded as one that reads text alone, with its
tokenizer. What goes wrong while loading becomes one sentence. Not here: what is done with them
(`vlm`).
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from care.data.example import Example
from care.errors import DataError, MissingDependencyError, ModelError, UsageError
from care.models.anatomy import image_token_id
from care.models.batches import encode, render
from care.models.sites import Role
from care.models.text_only import TextProcessor
from care.models.weights import check_counts, check_json, load_whole, loading

PICTURE = 448
"""Side of the picture by which the tokens of others are judged, where these depend on its size."""


def load_pretrained(
    name: str, dtype: Any, common: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Model and processor of this name; `common` goes to every loader, `options` to the model's.

    Options that are None are left out. Raises ModelError and MissingDependencyError.
    """
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer

    given = {key: value for key, value in options.items() if value is not None}
    what = f"the model {name}"
    with loading(what):
        # One small file first: a wrong name shows before the weights.
        _fetch_config(name, common.get("revision"))
        config = AutoConfig.from_pretrained(name, **common)
        check_counts(config, what)
        check_json(name, "generation_config.json", common.get("revision"))
        if image_token_id(config) is None:
            processor = TextProcessor(AutoTokenizer.from_pretrained(name, **common))
        else:
            processor = AutoProcessor.from_pretrained(name, **common)
        model = load_whole(_loader(config), name, what, dtype=dtype, **common, **given)
    return model, processor


def quantization(bits: str | None) -> Any:
    """The configuration of transformers for weights of "8-bit" or "4-bit"; None for None.

    Raises UsageError for another word, MissingDependencyError without bitsandbytes.
    """
    if bits is None:
        return None
    if bits not in ("8-bit", "4-bit"):
        raise UsageError(f"quantize is 8-bit or 4-bit, got {bits!r}.")
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"Weights in {bits} need bitsandbytes: pip install 'care-vlm[quantize]', or leave "
            "quantize out."
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=bits == "8-bit", load_in_4bit=bits == "4-bit")


def _loader(config: Any) -> Any:
    """What loads the model of a configuration.

    Code that comes with weights says under which names it can be had: of some models that take
    images (LLaVA-OneVision 1.5) as a causal language model only.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees, text = AutoModelForImageTextToText, AutoModelForCausalLM
    own = getattr(config, "auto_map", None) or {}
    causal = text.__name__ in own and sees.__name__ not in own
    return text if causal or image_token_id(config) is None else sees


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


def probe(sees: bool, side: int = 64) -> Example:
    """A word, with a picture for a model that sees, to find out whether it works at all."""
    pictures = (Image.new("RGB", (side, side), "grey"),) if sees else ()
    return Example("probe", "ping", images=pictures)


def picture_tokens(processor: Any, image_token_id: int | None, name: str) -> int:
    """Tokens of one picture of `PICTURE` × `PICTURE`; 0 of a model that reads text alone.

    ModelError unless template and processor make the model's image token of it.
    """
    templates = (
        getattr(processor, "chat_template", None),
        getattr(tokenizer_of(processor), "chat_template", None),
    )
    if not any(templates):
        raise ModelError(
            f"The processor of {name} has no chat template; set processor.chat_template."
        )
    example = probe(image_token_id is not None, PICTURE)
    try:
        text = render(processor, example)
        if "ping" not in text or "'type'" in text:
            raise ModelError(
                f"The chat template of {name} doesn't understand content lists of images and text."
            )
        _, roles = encode(processor, [example], [[]], image_token_id)
    except DataError as error:
        raise ModelError(
            f"{name} can't encode a message with an image, so model and processor don't "
            f"belong together: {error}"
        ) from error
    return int((roles == Role.IMAGE).sum())


def first_tokens(tokenizer: Any, openers: Sequence[str], prompt: str = "") -> list[int]:
    """First token of each opener, with and without a space before it, alone and after `prompt`.

    Tokenizers that mark the beginnings of words give other tokens within a text than at its
    beginning: after a template that ends in a new line a model says "I" and not "▁I".
    """
    ids = set()
    for opener in openers:
        for text in (opener, " " + opener):
            for token in {*_ids(tokenizer, text)[:1], *_after(tokenizer, prompt, text)}:
                # A lone space or the unknown token would match far more than refusals.
                if tokenizer.decode([token]).strip() and token != tokenizer.unk_token_id:
                    ids.add(token)
    return sorted(ids)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _after(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """The first token of `text` for a model that has read `prompt`, if it can be told."""
    before, both = _ids(tokenizer, prompt), _ids(tokenizer, prompt + text)
    if both[: len(before)] == before:
        return both[len(before) : len(before) + 1]
    # The prompt's end and the text merge into a token that can't come any more, as where a template
    # ends in a space: what comes instead is the longest token that the text begins with.
    for end in range(len(text), 0, -1):
        token = tokenizer.convert_tokens_to_ids(text[:end])
        if token is not None and token != tokenizer.unk_token_id:
            return [token]
    return []
