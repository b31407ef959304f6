"""From examples to left-padded model inputs with a role for every position.

The processor of the model does the encoding; what it returns is passed on complete, only the token
rows are repacked: prompts and appended answers are padded on the left, whatever side the processor
padded on. Nothing here runs the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from care.data.example import Example
from care.errors import DataError
from care.models.memory import out_of_memory
from care.models.sites import Role, roles_of_inputs
from care.models.text_only import TextProcessor

_SEQUENCE_KEYS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
)
_ANSWER_TYPES = {"PaliGemmaProcessor": 1}
"""`token_type_ids` of an answer by processor, where 0 is another thing: what is read both ways."""
_APART = ("MllamaProcessor", "PaliGemmaProcessor")
"""Processors of models whose requests with and without pictures can't share a batch: all rows of
Mllama attend to the pictures, and PaliGemma's begins the others in their middle."""
_REPEATED_KEYS = ("cross_attention_mask",)
"""What processors return for each token: a number, or a row of which an answer has the last."""


@dataclass(frozen=True)
class Batch:
    """Model inputs for B left-padded rows of T tokens."""

    inputs: dict[str, Any]
    """Everything the processor returned, on the model's device: `input_ids` (B, T),
    `attention_mask` (B, T), `pixel_values`, …"""

    roles: Tensor
    """`Role` of every position (B, T); response tokens, an opening's first, are a row's last."""

    def __len__(self) -> int:
        return self.roles.shape[0]


def render(processor: Any, example: Example) -> str:
    """The example as the chat template writes it, ready for an answer; DataError if it can't."""
    if example.images and isinstance(processor, TextProcessor):
        raise DataError(
            f"Example {example.id!r} has an image, but the model reads text alone; leave its "
            "images out, or use a vision-language model."
        )
    try:
        return processor.apply_chat_template(
            example.messages(), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise jinja errors of many kinds
        raise DataError(
            f"Example {example.id!r} doesn't fit the model's chat template ({error})."
        ) from error


def all_text(example: Example) -> str:
    """All that is read of an example but its images."""
    return example.prompt + (example.system or "") + example.opening


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of an answer, or of its beginning, as it stands; none of an empty one."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def encode(
    processor: Any,
    examples: Sequence[Example],
    answers: Sequence[list[int]],
    image_token_id: int | None,
) -> tuple[dict[str, Any], Tensor]:
    """Inputs of B prompts with openings and answer tokens appended, and roles (B, T), on the CPU.

    Raises DataError for an example that the processor can't encode or whose images and image
    tokens don't match.
    """
    texts = [render(processor, example) for example in examples]
    if image_token_id is not None:
        placeholder = processor.tokenizer.convert_ids_to_tokens(image_token_id)
        _refuse_placeholders(examples, placeholder)
    _check_together(processor, examples)
    encoded = _process(processor, examples, texts)
    begun = [answer_ids(processor.tokenizer, example.opening) for example in examples]
    answers = [opening + answer for opening, answer in zip(begun, answers, strict=True)]
    own = _ANSWER_TYPES.get(type(processor).__name__, 0)
    inputs = _repack(encoded, answers, processor.tokenizer.pad_token_id, own)
    roles = roles_of_inputs(inputs["input_ids"], inputs["attention_mask"], image_token_id)
    for row, answer in enumerate(answers):
        roles[row, roles.shape[1] - len(answer) :] = int(Role.RESPONSE)
    _check_images(examples, roles)
    return inputs, roles


def check_lengths(
    examples: Sequence[Example], attention_mask: Tensor, limit: int | None, name: str
) -> None:
    """DataError for a prompt of more than `limit` tokens, which the model `name` can't read."""
    lengths = attention_mask.sum(dim=1)
    if limit is not None and int(lengths.max()) > limit:
        worst = int(lengths.argmax())
        raise DataError(
            f"Example {examples[worst].id!r} has {int(lengths[worst])} tokens, more than the "
            f"{limit} that {name} can read; shorten it."
        )


def placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model's argument on its device, and in its type if it is made of real numbers."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def prompt_lengths(
    tokenizer: Any,
    examples: Sequence[Example],
    picture: int,
    extra: Sequence[str] | None = None,
) -> list[int]:
    """About how many tokens examples have, of which `extra` follows each, without the template's.

    `picture` is the number of those that a picture takes.
    """
    more = [f" {text}" for text in extra or ()] or [""] * len(examples)
    return [
        len(answer_ids(tokenizer, all_text(e) + end)) + picture * len(e.images)
        for e, end in zip(examples, more, strict=True)
    ]


def by_length(examples: Sequence[Example], lengths: Sequence[int]) -> list[int]:
    """Indices sorted by number of images, then length, longest first.

    Longest first: a batch that doesn't fit into memory shows at once.
    """
    return sorted(
        range(len(examples)),
        key=lambda index: (-len(examples[index].images), -lengths[index], index),
    )


def _refuse_placeholders(examples: Sequence[Example], placeholder: str | None) -> None:
    if placeholder is None:
        raise DataError("The tokenizer doesn't know the model's image token.")
    for example in examples:
        if placeholder in all_text(example):
            raise DataError(
                f"Example {example.id!r} contains the image placeholder {placeholder} as text; "
                "remove it (images are placed automatically)."
            )


def _process(processor: Any, examples: Sequence[Example], texts: list[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"text": texts, "padding": True, "return_tensors": "pt"}
    images = [example.load_images() for example in examples]
    if any(images):
        arguments["images"] = images
    bos = processor.tokenizer.bos_token
    if bos is not None and texts[0].startswith(bos):
        arguments["add_special_tokens"] = False  # the template has written it already
    try:
        return _inputs(processor, arguments)
    except (ValueError, TypeError, RuntimeError, IndexError, OSError) as error:
        if out_of_memory(error):  # that's not the examples' fault, and fewer may fit
            raise
        ids = ", ".join(example.id for example in examples[:4])
        raise DataError(f"The processor can't encode the examples {ids} ({error}).") from error


def _inputs(processor: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a processor makes of its arguments, without what only training needs.

    Pictures are given by prompt, since a plain list is taken for those of one prompt by some
    (Gemma 3), and as a list where that is refused (GOT-OCR 2). Some (PaliGemma's) can't be asked
    without pictures, though their models can: text alone is the tokenizer's matter then. Some
    (Cosmos 3 Edge's) return kinds of tokens that their models need only when asked for them.
    """
    names = getattr(processor, "model_input_names", ())
    asked = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in names else {}
    try:
        found = processor(**arguments, **asked)
    except ValueError:
        if "images" not in arguments:
            types = "token_type_ids" in names
            found = processor.tokenizer(**arguments, return_token_type_ids=types)
        else:
            flat = [image for row in arguments["images"] for image in row]
            found = processor(**arguments | {"images": flat}, **asked)
    return {key: value for key, value in found.items() if key != "labels"}


def _repack(
    encoded: dict[str, Any], answers: Sequence[list[int]], pad: int, answer_type: int = 0
) -> dict[str, Any]:
    """Append answers to the prompts and pad on the left, whatever side the processor padded."""
    mask = encoded["attention_mask"].bool()
    lengths = [int(row.sum()) + len(answer) for row, answer in zip(mask, answers, strict=True)]
    width = max(lengths)
    packed = dict(encoded)
    for key in (*_SEQUENCE_KEYS, *_REPEATED_KEYS):
        if (value := encoded.get(key)) is None:
            continue
        rows = value.new_full(
            (len(answers), width, *value.shape[2:]), pad if key == "input_ids" else 0
        )
        for row, answer in enumerate(answers):
            content = value[row][mask[row]]
            fill = {
                "input_ids": answer,
                "attention_mask": [1] * len(answer),
                "token_type_ids": [answer_type] * len(answer),
            }
            if key in _REPEATED_KEYS:
                tail = content[-1:].expand(len(answer), *content.shape[1:])
            else:
                tail = rows.new_tensor(fill.get(key, [0] * len(answer)))
            rows[row, width - lengths[row] :] = torch.cat([content, tail])
        packed[key] = rows
    return packed


def _check_together(processor: Any, examples: Sequence[Example]) -> None:
    """DataError for pictures beside none where a processor mixes them up (`_APART`)."""
    pictured = [bool(example.images) for example in examples]
    if type(processor).__name__ in _APART and any(pictured) and not all(pictured):
        without = examples[pictured.index(False)].id
        raise DataError(
            f"Example {without!r} has no image, and this model can't read it in one batch with "
            "those that have; batch them apart."
        )


def _check_images(examples: Sequence[Example], roles: Tensor) -> None:
    seen = (roles == Role.IMAGE).any(dim=1).tolist()
    for example, has_image in zip(examples, seen, strict=True):
        if bool(example.images) != has_image:
            raise DataError(
                f"Example {example.id!r} has {len(example.images)} images but its encoded prompt "
                f"holds {'some' if has_image else 'none'}."
            )
