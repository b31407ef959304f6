"""What can't be honoured inside vLLM, refused in one sentence before the first token.

A repair acts as it does in transformers or not at all. Which tokens of a step are a prompt's end or
an answer is known from vLLM's Model Runner V2, its default on GPUs, and on a CPU, where that
doesn't run, from a logits processor that changes no logit (`requests`); of the older runner on a
GPU it isn't. What splits a step's tokens, guesses some, or takes what another request computed is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from care.defenses.repair.channel import RepairData
from care.errors import UsageError
from care.interfaces.vllm.settings import Settings
from care.interfaces.vllm.tokens import (
    Scopes,
    everywhere,
    needs_pictures,
    outlives_its_prompt,
    scopes_of,
)

KINDS = ("ffn_out", "layer_out")
"""Sites that are edited in vLLM."""

REQUESTS = "care.interfaces.vllm.requests:Requests"
"""The logits processor, as `--logits-processors` takes it."""

_STOCK_COMPILE = 1
"""vLLM's compilation mode in which the whole model is compiled, what is eager here included."""


def needs_mask(scopes: Sequence[Scopes], settings: Settings) -> bool:
    """Whether tokens have to be told apart at all."""
    return settings.switch is not None or not all(map(everywhere, scopes))


def needs_no_prefix_cache(scopes: Sequence[Scopes], settings: Settings) -> bool:
    """Whether what one request left in vLLM's prefix cache may be wrong for another."""
    return settings.switch is not None or not all(map(outlives_its_prompt, scopes))


def check(config: Any, repair: RepairData, settings: Settings, image_token_id: int | None) -> None:
    """UsageError for what vLLM, configured so, can't be given of this repair."""
    name = config.model_config.model
    if found := next(_of_the_repair(config, repair), None):
        raise UsageError(f"vLLM can't serve {name} with {repair.name}: {found}.")
    scopes = scopes_of(repair.channels)
    found = [*_of_the_engine(config)]
    if needs_mask(scopes, settings):
        found += _of_the_runner(config)
    if any(map(needs_pictures, scopes)) and image_token_id is None:
        found.append(
            "its channels tell tokens of pictures from others, and the model's configuration names "
            "no image token; serve the model by care itself"
        )
    if needs_no_prefix_cache(scopes, settings) and config.cache_config.enable_prefix_caching:
        found.append(
            "what one request leaves in the prefix cache would be wrong for another; add "
            "--no-enable-prefix-caching"
        )
    if found:
        raise UsageError(f"vLLM can't serve {name} with {repair.name}: {found[0]}.")


def _of_the_repair(config: Any, repair: RepairData) -> Iterator[str]:
    text = config.model_config.hf_config.get_text_config()
    for channel in repair.channels:
        site = channel.site
        if site.kind not in KINDS:
            yield (
                f"it edits {site}, and only {' and '.join(KINDS)} are edited there; fit a repair "
                "with kind ffn_out or layer_out"
            )
        if site.layer >= text.num_hidden_layers:
            yield f"it edits {site}, and the model has {text.num_hidden_layers} layers"
        if channel.subspace.width != text.hidden_size:
            yield (
                f"its subspace at {site} has width {channel.subspace.width}, and the model "
                f"{text.hidden_size}; fit a repair for this model"
            )
    if not any(channel.strength > 0 for channel in repair.channels):
        yield "it has no channel that edits anything, and its monitors can't run there"


def _of_the_engine(config: Any) -> Iterator[str]:
    parallel = config.parallel_config
    if config.model_config.runner_type != "generate":
        yield f"the engine is of kind {config.model_config.runner_type}, and a repair needs answers"
    if config.speculative_config is not None:
        yield "a drafting model isn't repaired; leave out --speculative-config"
    if parallel.pipeline_parallel_size > 1:
        yield "its layers would lie in several engines; leave out --pipeline-parallel-size"
    contexts = (parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size)
    if max(contexts) > 1:
        yield "the tokens of a prompt would be split; leave out context parallelism"
    if parallel.use_ubatching:
        yield "the tokens of a step would be split; leave out --enable-dbo and micro-batches"
    if config.model_config.enable_prompt_embeds:
        yield "prompts of embeddings have no tokens; leave out --enable-prompt-embeds"
    if config.kv_transfer_config is not None:
        yield "prompts would be read by another engine; leave out --kv-transfer-config"
    if config.cache_config.kv_sharing_fast_prefill:
        yield "prompts would be read in part; leave out --kv-sharing-fast-prefill"


def _of_the_runner(config: Any) -> Iterator[str]:
    if config.use_v2_model_runner:
        return
    if config.device_config.device_type != "cpu":
        yield (
            "only Model Runner V2 tells which tokens are a prompt's; set VLLM_USE_V2_MODEL_RUNNER=1"
        )
    elif config.compilation_config.mode == _STOCK_COMPILE:
        yield "in compilation mode 1 nothing is eager; take another"
    elif REQUESTS not in (config.model_config.logits_processors or ()):
        yield f"on a CPU its requests have to be seen; add --logits-processors {REQUESTS}"
