"""A tokenizer in the place of a processor, for models that read text alone.

Their templates take the content of a message as a text, where those of vision-language models take
a list of parts; the parts of a message are joined by new lines.
"""

from collections.abc import Sequence
from typing import Any


def text_processor(given: Any) -> Any:
    """A processor of text for what a model without eyes comes with: its tokenizer, or one."""
    return given if hasattr(given, "tokenizer") else TextProcessor(given)


class TextProcessor:
    """What the package asks of a processor, done by a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a tokenizer, whose chat template this has."""
        self.tokenizer = tokenizer

    @property
    def chat_template(self) -> Any:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool, **options: Any
    ) -> Any:
        """The messages as the template writes them; they hold no pictures (`batches.render`)."""
        texts = [message | {"content": _text(message["content"])} for message in messages]
        return self.tokenizer.apply_chat_template(
            texts, add_generation_prompt=add_generation_prompt, **options
        )

    def __call__(self, text: Sequence[str], **options: Any) -> Any:
        """Tokens of some texts, as the tokenizer gives them."""
        return self.tokenizer(list(text), **options)

    def save_pretrained(self, folder: Any) -> None:
        """Save the tokenizer."""
        self.tokenizer.save_pretrained(folder)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)
