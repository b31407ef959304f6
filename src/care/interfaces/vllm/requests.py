"""A logits processor that changes no logit: vLLM shows it the requests, and their arguments.

It is given on the command line (`--logits-processors`). vLLM's older runner tells it which request
is where in the next step, with the prompt's tokens, before the step runs; that is all that a mask
needs. For both runners it refuses malformed arguments while their client waits, and a model that
has no subclass here, whose repair would be left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsProcessor,
)
from vllm.v1.sample.logits_processor.builtin import (  # pyright: ignore[reportMissingImports]
    process_dict_updates,
)
from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsProcessor as LogitsProcessorV2,
)

from care.errors import UsageError
from care.interfaces.vllm.plugin import NATIVE, TRANSFORMERS
from care.interfaces.vllm.settings import OFF, read_settings
from care.interfaces.vllm.tokens import EditedTokens

_ENGINES: WeakValueDictionary[int, Requests] = WeakValueDictionary()
"""By the identity of their configuration: vLLM gives a model no other way to what sees requests,
and its configuration holds nothing that it doesn't know."""


class Requests(LogitsProcessorV2, LogitsProcessor):
    """The requests of the engine that it belongs to, by their place in the next step."""

    edited: Callable[[Any, Any], EditedTokens] | None = None
    """Makes a row of a prompt's tokens and a request's arguments; the repaired model sets it."""

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        self.rows: dict[int, EditedTokens] = {}
        settings = read_settings(vllm_config.additional_config)
        known = vllm_config.model_config.architecture
        if settings is not None and known not in (*NATIVE, *TRANSFORMERS):
            raise UsageError(
                f"vLLM's class {known} of {vllm_config.model_config.model} can't be repaired; add "
                "--model-impl transformers."
            )
        self._config = vllm_config  # held, so that no other has its id meanwhile
        _ENGINES[id(vllm_config)] = self

    @classmethod
    def of(cls, vllm_config: Any) -> Requests:
        """That of the engine with this configuration, which its model is given too."""
        return _ENGINES[id(vllm_config)]

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError, which the client is shown, for a malformed argument."""
        word = (sampling_params.extra_args or {}).get(OFF)
        if word is not None and not isinstance(word, str):
            raise ValueError(f"{OFF} must be the word that takes the repair off, got {word!r:.40}.")

    def update_state(self, batch_update: Any) -> None:
        """Of the older runner, before each step: who came, left and moved."""
        if self.edited is not None:
            process_dict_updates(self.rows, batch_update, self._row)

    def _row(self, params: Any, prompt_ids: Any, answer_ids: Any) -> EditedTokens:
        assert self.edited is not None
        return self.edited(prompt_ids, params.extra_args)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Of Model Runner V2: no request's logits are changed."""
        return False

    def apply(self, logits: Any, ctx: Any = None) -> Any:
        """The logits as they are."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """They are."""
        return True
