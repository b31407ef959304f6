"""Subclasses of vLLM's model classes, one for each architecture of `plugin`, made when asked for.

Without a repair in `additional_config` an instance of vLLM's own class is made, and none of these.
With one, the decoder layers are hooked before anything is profiled, compiled or captured, and the
masks of each step are written before it runs: from the state that Model Runner V2 keeps of requests
(`RepairedState`), or on a CPU in a hook before the model, from what `requests` was told.
"""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from vllm.config import get_current_vllm_config  # pyright: ignore[reportMissingImports]
from vllm.forward_context import get_forward_context  # pyright: ignore[reportMissingImports]
from vllm.logger import init_logger  # pyright: ignore[reportMissingImports]

from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.interfaces.vllm import limits
from care.interfaces.vllm.layers import decoder_layers, put_on
from care.interfaces.vllm.plugin import NATIVE, TRANSFORMERS
from care.interfaces.vllm.requests import Requests
from care.interfaces.vllm.settings import OFF, Settings, is_off, load_repair, read_settings
from care.interfaces.vllm.state import with_masks
from care.interfaces.vllm.tokens import EditedTokens, StepMask, scopes_of
from care.models.anatomy import image_token_id

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that its lines are shown


class Repaired:
    """What the subclasses add to vLLM's classes."""

    native = True
    """Whether the decoder layers are vLLM's own."""
    stock: type | None = None
    """vLLM's own class."""
    care: _Work | None = None
    """The repair, where there is one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Of vLLM's own class where there is no repair."""
        config, stock = kwargs["vllm_config"], cls.__dict__.get("stock")
        if stock is not None and read_settings(config.additional_config) is None:
            return stock(*args, **kwargs)
        make = super().__new__
        return make(cls) if make is object.__new__ else make(cls, *args, **kwargs)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        """The model, with the repair on it."""
        settings = read_settings(vllm_config.additional_config)
        if settings is None:  # in a subclass that vLLM itself has made, of pooling models
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # pyright: ignore[reportCallIssue]
            return
        repair, image = load_repair(settings), image_token_id(vllm_config.model_config.hf_config)
        limits.check(vllm_config, repair, settings, image)  # before gigabytes are laid out
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # pyright: ignore[reportCallIssue]
        self.care = _Work(self, vllm_config, repair, settings, image)

    def get_model_state_cls(self) -> type:
        """What keeps requests in Model Runner V2: vLLM's, told of the masks."""
        from vllm.v1.worker.gpu.model_states import (  # pyright: ignore[reportMissingImports]
            resolve_model_state_cls,
        )

        inherited: Any = getattr(super(), "get_model_state_cls", None)
        config = get_current_vllm_config() if self.care is None else self.care.config
        known = inherited() if inherited else resolve_model_state_cls(config, _Bare(self))
        return known if self.care is None or self.care.mask is None else with_masks(known)


class _Bare:
    """A model as vLLM sees it that brings no state of its own."""

    def __init__(self, model: Any) -> None:
        self.modules = model.modules


class _Work:
    """A repair on a model: which tokens its hooks edit in the step that runs."""

    def __init__(
        self, model: Any, config: Any, repair: Repair, settings: Settings, image: int | None
    ) -> None:
        self.config, self._settings, self._image = config, settings, image
        name, device = config.model_config.model, config.device_config.device
        scopes = scopes_of(repair.channels)
        self.mask = None
        if limits.needs_mask(scopes, settings):
            most = config.scheduler_config.max_num_batched_tokens
            self.mask = StepMask(scopes, most, device)
        text = config.model_config.hf_config.get_text_config()
        layers = decoder_layers(_language_model(model), text.num_hidden_layers, name)
        sites = put_on(
            layers,
            repair,
            native=model.native,
            device=device,
            dtype=config.model_config.dtype,
            mask=self.mask,
        )
        if self.mask is not None and not config.use_v2_model_runner:
            self._requests = Requests.of(config)
            self._requests.edited = self.edited
            model.register_forward_pre_hook(self._before, with_kwargs=True)
        ranks = [c.subspace.rank for c in repair.channels if c.strength > 0]
        shown = " ".join("+".join(each) for each in scopes)
        logger.info(
            "care: %s on %s, ranks %s, scopes %s, digest %s, %s",
            repair.name,
            ", ".join(map(str, sites)),
            ranks,
            shown,
            settings.digest[:12],
            "off by request" if settings.switch else "on in every request",
        )

    def edited(self, prompt_ids: list[int] | None, arguments: Any) -> EditedTokens:
        """Of one request: which of its tokens are edited."""
        assert self.mask is not None and prompt_ids  # prompts of embeddings are refused
        off = is_off(arguments, self._settings)
        if OFF in (arguments or {}) and not off:
            logger.warning(
                "care: a request holds %s without the word that takes the repair off; it stays on.",
                OFF,
            )
        return EditedTokens.of(prompt_ids, self.mask.scopes, self._image, off)

    def _before(self, model: Any, args: Any, kwargs: Any) -> None:
        """Write the masks of a step of the older runner, on a CPU."""
        assert self.mask is not None
        length = _length(kwargs)
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # nobody's tokens: a profile, or a warm-up
            self.mask.clear(length)
            return
        told = next((m for m in metadata.values() if hasattr(m, "query_start_loc")), None)
        if told is None:
            raise UsageError(
                "The attention of this model doesn't say where requests begin, so tokens can't be "
                "told apart; serve it by care itself."
            )
        ends, lengths = told.query_start_loc.tolist(), told.seq_lens.tolist()
        counts = [end - start for start, end in pairwise(ends)]
        first = [total - count for total, count in zip(lengths, counts, strict=True)]
        requests = [self._requests.rows[place] for place in range(len(counts))]
        self.mask.write(requests, first, counts, length)


def _length(kwargs: Any) -> int:
    """Tokens of the step, padding included."""
    given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"))
    return next(len(each) for each in given if isinstance(each, torch.Tensor))


def _language_model(model: Any) -> Any:
    """The part of a model that has the text layers."""
    return model.get_language_model() if model.native else model.model.get_decoder()


def __getattr__(name: str) -> Any:
    """The subclass of an architecture: vLLM asks for it by name, and knows it by its class's."""
    where = NATIVE.get(name) or TRANSFORMERS.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, known = where.partition(":")
    base = getattr(import_module(f"vllm.model_executor.models.{module}"), known)
    body = {"__module__": __name__, "native": name in NATIVE, "stock": base}
    made = globals()[name] = type(known, (Repaired, base), body)
    return made
