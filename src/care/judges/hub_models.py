"""What the judges from the Hub share: loading, what is recorded of them, and reading a prompt.

    load_text_model, load_vision_model    a model and its tokenizer or processor
    HubJudge.inputs(prompts)              left-padded, on the model's device
    HubJudge.next_tokens(prompts)         log-probabilities (B, vocabulary) of the next tokens

What they ask and how they read the answer is theirs: `classifiers` reads one token, `guards` a
line, `shieldgemma` two logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from care.errors import MissingDependencyError
from care.judges.config import HubConfig
from care.judges.model_judge import Finding, ModelJudge
from care.judges.rules import RulesJudge
from care.models.decoding import position_ids
from care.models.devices import device_of
from care.models.finite import not_finite
from care.models.weights import load_whole, loading


class HubJudge(ModelJudge):
    """A judge whose model and processor come from the Hub or a folder."""

    def __init__(
        self, model: Any, processor: Any, config: HubConfig, rules: RulesJudge | None = None
    ) -> None:
        """`processor` is a tokenizer, or a processor where the model has eyes."""
        super().__init__(config.name, rules)
        self.model, self.processor, self.config = model.eval(), processor, config
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def identity(self) -> dict[str, Any]:
        """Model, its revision as loaded, and its type; judges add what they ask it."""
        return {
            "judge": self.name,
            "model": self.config.model,
            "revision": getattr(self.model.config, "_commit_hash", None) or self.config.revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def device(self) -> torch.device:
        """Where prompts are read."""
        return device_of(self.model.get_input_embeddings(), self.model)

    def not_finite(self) -> Finding:
        """What is found where the model computes NaN."""
        return Finding(None, error=not_finite(self.config.model, self.model.dtype))

    def inputs(
        self, prompts: Sequence[str], pictures: Sequence[Image.Image] = ()
    ) -> dict[str, Any]:
        """Prompts, with pictures for those of one, as the model takes them; padded on the left, so
        that the last position is that of every row."""
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        bos = self.tokenizer.bos_token
        if bos is not None and prompts[0].startswith(bos):
            options["add_special_tokens"] = False  # the template has written it already
        self.tokenizer.padding_side = "left"
        if pictures:
            made = self.processor(text=list(prompts), images=list(pictures), **options)
        else:
            made = self.tokenizer(list(prompts), **options)
        device = self.device()
        return {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in dict(made).items()
            if key != "token_type_ids"
        }

    @torch.no_grad()
    def next_tokens(self, prompts: Sequence[str]) -> np.ndarray:
        """Log-probabilities (B, vocabulary) of the token after each prompt."""
        inputs = self.inputs(prompts)
        logits = self.model(
            **inputs,
            position_ids=position_ids(inputs["attention_mask"]),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits.float().log_softmax(-1).cpu().numpy()


def load_text_model(config: HubConfig) -> tuple[Any, Any]:
    """A causal language model and its tokenizer.

    Raises ModelError when they can't be had, and MissingDependencyError when the model is an
    adapter and peft isn't installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.import_utils import is_peft_available
    from transformers.utils.peft_utils import find_adapter_config_file

    with loading(_what(config)):
        adapter = find_adapter_config_file(config.model, revision=config.revision)
        if adapter is not None and not is_peft_available():
            raise MissingDependencyError(
                f"{config.model} is an adapter, and loading one needs peft: "
                "pip install 'care-vlm[peft]'"
            )
    return _load(config, AutoModelForCausalLM, AutoTokenizer)


def load_vision_model(config: HubConfig, loader: Any = None) -> tuple[Any, Any]:
    """A model with eyes, by `loader` of transformers, and its processor; ModelError if they can't
    be had."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return _load(config, loader or AutoModelForImageTextToText, AutoProcessor)


def _load(config: HubConfig, loader: Any, processors: Any) -> tuple[Any, Any]:
    what = _what(config)
    options = {} if config.device_map is None else {"device_map": config.device_map}
    with loading(what):
        processor = processors.from_pretrained(config.model, revision=config.revision)
        model = load_whole(
            loader, config.model, what, revision=config.revision, dtype=config.dtype, **options
        )
    return model, processor


def _what(config: HubConfig) -> str:
    return f"the judge {config.model}"
