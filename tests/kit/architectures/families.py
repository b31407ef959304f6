"""What has to be said of each family beyond its name, so that a tiny one can be built.

Those that people run; others are in `other_families`.
"""

from typing import Any

from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from kit.architectures.building import Family
from kit.architectures.other_families import OTHERS
from kit.architectures.sizes import (
    CUT,
    GEMMA4_TOWER,
    GLM,
    LLAVA,
    MROPE,
    PAD,
    PARTIAL,
    PINPOINTS,
    SIZE,
    SQUARE,
    TOWER,
    VIDEOS,
)
from kit.architectures.stubs import flattened, pooled, sized, stand_in, whole

_SPLIT = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
_IDEFICS: dict[str, Any] = {
    "images": _SPLIT,
    "processor": {"image_seq_len": 4},
    "config": {**TOWER, "scale_factor": 2},
}


def _llama4() -> None:
    """Give the output of its text model a field that transformers 5.24.0 reads and doesn't make."""
    MoeCausalLMOutputWithPast.image_outputs = None  # pyright: ignore[reportAttributeAccessIssue]


FAMILIES: dict[str, Family] = {
    "llava": Family(images=SQUARE, processor=LLAVA, config=TOWER),
    "llava_next": Family(
        images={**SQUARE, "image_grid_pinpoints": PINPOINTS},
        processor=LLAVA,
        config={**TOWER, "image_grid_pinpoints": PINPOINTS},
    ),
    "llava_onevision": Family(
        images={"size": SIZE, "image_grid_pinpoints": [[56, 56], *PINPOINTS]},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        config={**TOWER, "image_grid_pinpoints": [[56, 56], *PINPOINTS]},
    ),
    "qwen2_vl": Family(**PAD, config={"text_config.rope_parameters": MROPE}),
    "qwen2_5_vl": Family(**PAD, config={"text_config.rope_parameters": MROPE}),
    "qwen3_vl": Family(**PAD, images=CUT),
    "qwen3_vl_moe": Family(**PAD, images=CUT, uses=("", "Qwen2VLImageProcessorPil")),
    "qwen3_5": Family(**PAD, images=CUT),
    "qwen3_5_moe": Family(**PAD, images=CUT),
    "internvl": Family(
        image="<IMG_CONTEXT>",
        images={"size": SIZE},
        processor={"image_seq_length": 4},
        config={
            "vision_config.image_size": [56, 56],
            "vision_config.patch_size": [14, 14],
            "image_seq_length": 4,
        },
    ),
    "gemma3": Family(
        image="<begin_of_image>",
        token="<image_soft_token>",
        images={"size": SIZE},
        processor={"image_seq_length": 4},
        config={**TOWER, "mm_tokens_per_image": 4},
    ),
    "gemma4": Family(
        config={"vision_config": GEMMA4_TOWER},
        images={"max_soft_tokens": 70},
        adds=("post_per_layer_input_norm",),
    ),
    "smolvlm": Family(**_IDEFICS | {"processor": {"image_seq_len": 4, "video_processor": VIDEOS}}),
    "idefics3": Family(**_IDEFICS),
    "mistral3": Family(
        image="[IMG]",
        config=TOWER,
        stub=stand_in("[IMG]", "[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]", sized),
    ),
    "paligemma": Family(images={"size": SIZE, "image_seq_length": 16}, config=TOWER),
    "glm4v": Family(**GLM, config={"text_config.rope_parameters": PARTIAL}),
    "deepseek_vl": Family(images={"size": SIZE}, processor={"num_image_tokens": 16}, config=TOWER),
    "cohere2_vision": Family(
        config=TOWER, stub=stand_in("<image>", "<|START_OF_IMG|>" + "<image>" * 4, whole)
    ),
    "aya_vision": Family(
        token="<|IMG_PATCH|>",
        images={"size": SIZE},
        processor={"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        config=TOWER,
    ),
    "ovis2": Family(
        token="<IMG_ATOM>",
        images={"size": SIZE},
        processor={"image_seq_length": 16},
        config=TOWER,
    ),
    "molmo2": Family(
        token="<im_patch>",
        config={
            "vision_config.image_size": [56, 56],
            "vision_config.num_position_embeddings": 16,
            "adapter_config.vision_feature_layer": [1, 0],
            "additional_vocab_size": 16,
        },
        stub=stand_in(
            "<image>",
            "<low_res_im_start>" + "<im_patch>" * 4 + "<im_end>"
            "<im_start>" + "<im_patch>" * 4 + "<im_end>",
            pooled,
        ),
    ),
    "llama4": Family(
        token="<|patch|>",
        config={**TOWER, "vision_config.intermediate_size": 128},
        mend=_llama4,
        note="transformers 5.24.0 can't run it (its own `forward` reads `image_outputs`, which its "
        "text model doesn't return); tried with that put right",
        stub=stand_in("<image>", "<|image_start|>" + "<|patch|>" * 4 + "<|image_end|>", whole),
    ),
    "mllama": Family(
        image="<|image|>",
        apart=True,
        images={"size": SIZE},
        config={
            **TOWER,
            "vision_config.intermediate_layers_indices": [0],
            "vision_config.vision_output_dim": 64,
        },
    ),
    "lfm2_vl": Family(
        config={
            "vision_config.patch_size": 14,
            "vision_config.num_patches": 16,
            "text_config.layer_types": ["conv", "conv", "full_attention", "conv"],
        },
        stub=stand_in("<image>", "<|image_start|>" + "<image>" * 4 + "<|image_end|>", flattened),
    ),
    "minicpmv4_6": Family(
        processor={"video_processor": VIDEOS},
        images={"patch_size": 16},
        config={"insert_layer_id": 0},
    ),
}
"""By the name that transformers gives it (`model_type`)."""

FAMILIES |= OTHERS
