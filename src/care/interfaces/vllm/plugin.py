"""The entry point of `vllm.general_plugins`: a subclass in the place of each model class.

vLLM calls `register` in every process that it starts, some of them more than once, before it knows
its configuration. So the subclasses are registered everywhere, by name, and none is imported before
a model of that architecture is served; what they do without a repair is nothing (`models`).
"""

from __future__ import annotations

from typing import Any

NATIVE: dict[str, str] = {
    "LlavaForConditionalGeneration": "llava:LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration": "llava_next:LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": (
        "llava_onevision:LlavaOnevisionForConditionalGeneration"
    ),
    "Qwen2VLForConditionalGeneration": "qwen2_vl:Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl:Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:Qwen3VLForConditionalGeneration",
    "Gemma3ForConditionalGeneration": "gemma3_mm:Gemma3ForConditionalGeneration",
    "InternVLChatModel": "internvl:InternVLChatModel",
    "InternVLForConditionalGeneration": "interns1:InternS1ForConditionalGeneration",
    "Idefics3ForConditionalGeneration": "idefics3:Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration": "smolvlm:SmolVLMForConditionalGeneration",
}
"""vLLM's own classes, by architecture: the module within `vllm.model_executor.models`, and the
name. Their decoder layers give what the FFN adds and the residual stream apart."""

TRANSFORMERS: dict[str, str] = {
    name: f"transformers:{name}"
    for name in ("TransformersMultiModalForCausalLM", "TransformersMultiModalMoEForCausalLM")
}
"""Its classes around the modules of transformers (`--model-impl transformers`), in which anything
else is served; their decoder layers give the residual stream."""

MODULE = "care.interfaces.vllm.models"
"""Where the subclasses are, each under the name of its architecture."""


def register() -> None:
    """Register the subclasses; to do it again changes nothing."""
    from vllm import (  # pyright: ignore[reportMissingImports]
        ModelRegistry,  # pyright: ignore[reportAttributeAccessIssue]
    )

    register_in(ModelRegistry)


def register_in(registry: Any) -> None:
    """The same in a given registry: those of its architectures that are known here."""
    there = set(registry.get_supported_archs())
    for name in (*NATIVE, *TRANSFORMERS):
        if name in there:  # an older vLLM has fewer
            registry.register_model(name, f"{MODULE}:{name}")
