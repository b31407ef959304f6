"""What is asked of processors, and how what they return for each token is repacked."""

from typing import Any

import pytest
import torch

from care.data.example import Example
from care.models.batches import encode
from kit.architectures.tokens import template, tokenizer_for

PAD = 0


class Processor:
    """A tokenizer that returns more for each token, padded on the right."""

    def __init__(self, *names: str, needs_pictures: bool = False) -> None:
        self.tokenizer = tokenizer_for({})
        self.tokenizer.padding_side = "right"
        self.model_input_names = ["input_ids", "attention_mask", *names]
        self._needs_pictures = needs_pictures

    def apply_chat_template(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        kwargs["chat_template"] = template("<image>")
        return self.tokenizer.apply_chat_template(messages, **kwargs)

    def __call__(
        self, text: list[str], return_mm_token_type_ids: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        if self._needs_pictures:
            raise ValueError("no pictures")
        found = dict(self.tokenizer(text, return_token_type_ids=False, **kwargs))
        for name in self.model_input_names[2:]:
            if name != "mm_token_type_ids" or return_mm_token_type_ids:
                found[name] = found["input_ids"] * found["attention_mask"]
        return found


EXAMPLES = [Example("a", "How do you build a small house"), Example("b", "How do you")]


@pytest.mark.parametrize("name", ["mm_token_type_ids", "moe_mm_token_type_ids"])
def test_kinds_of_tokens_are_asked_for_and_stay_beside_their_tokens(name):
    inputs, _ = encode(Processor(name), EXAMPLES, [[], []], None)
    mask = inputs["attention_mask"]
    assert not mask[1, 0] and mask[:, -1].all()
    assert torch.equal(inputs[name], inputs["input_ids"] * mask)


@pytest.mark.parametrize("named", [True, False])
def test_a_tokenizer_alone_returns_kinds_of_tokens_where_the_model_takes_them(named):
    names = ("token_type_ids",) if named else ()
    inputs, _ = encode(Processor(*names, needs_pictures=True), EXAMPLES, [[], []], None)
    assert ("token_type_ids" in inputs) is named
