"""What has to be said of each family beyond its name, so that a tiny one can be built.

Towers see 56 pixels in patches of 14 where a family lets them, so that an image is a few tokens.
"""

from types import SimpleNamespace
from typing import Any

from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from kit.architectures.building import Family
from kit.architectures.stubs import flattened, pooled, sized, stand_in, whole
from kit.architectures.tokens import special_tokens

_SIZE = {"height": 56, "width": 56}
_TOWER = {"vision_config.image_size": 56, "vision_config.patch_size": 14}
_PINPOINTS = [[56, 112], [112, 56], [112, 112]]
_LLAVA: dict[str, Any] = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_SQUARE = {"size": {"shortest_edge": 56}, "crop_size": _SIZE}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_PARTIAL = {**_MROPE, "partial_rotary_factor": 1.0}
_PAD = {"image": "<|vision_start|><|image_pad|><|vision_end|>", "token": "<|image_pad|>"}
_CUT = {"patch_size": 16}
_GLM = {"image": "<|begin_of_image|><|image|><|end_of_image|>", "token": "<|image|>"}
_SPLIT = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
_IDEFICS: dict[str, Any] = {
    "images": _SPLIT,
    "processor": {"image_seq_len": 4},
    "config": {**_TOWER, "scale_factor": 2},
}


def _llama4() -> None:
    """Give the output of its text model a field that transformers 5.24.0 reads and doesn't make."""
    MoeCausalLMOutputWithPast.image_outputs = None  # pyright: ignore[reportAttributeAccessIssue]


_VIDEOS = SimpleNamespace(num_frames=1, fps=1, slice_mode=False, downsample_mode="16x")
"""What a processor asks of its processor of videos when it is asked for none."""

_GEMMA4_TOWER = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "position_embedding_size": 1024,
}

FAMILIES: dict[str, Family] = {
    "llava": Family(images=_SQUARE, processor=_LLAVA, config=_TOWER),
    "llava_next": Family(
        images={**_SQUARE, "image_grid_pinpoints": _PINPOINTS},
        processor=_LLAVA,
        config={**_TOWER, "image_grid_pinpoints": _PINPOINTS},
    ),
    "llava_onevision": Family(
        images={"size": _SIZE, "image_grid_pinpoints": [[56, 56], *_PINPOINTS]},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        config={**_TOWER, "image_grid_pinpoints": [[56, 56], *_PINPOINTS]},
    ),
    "qwen2_vl": Family(**_PAD, config={"text_config.rope_parameters": _MROPE}),
    "qwen2_5_vl": Family(**_PAD, config={"text_config.rope_parameters": _MROPE}),
    "qwen3_vl": Family(**_PAD, images=_CUT),
    "qwen3_vl_moe": Family(**_PAD, images=_CUT, uses=("", "Qwen2VLImageProcessorPil")),
    "qwen3_5": Family(**_PAD, images=_CUT),
    "qwen3_5_moe": Family(**_PAD, images=_CUT),
    "internvl": Family(
        image="<IMG_CONTEXT>",
        images={"size": _SIZE},
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
        images={"size": _SIZE},
        processor={"image_seq_length": 4},
        config={**_TOWER, "mm_tokens_per_image": 4},
    ),
    "gemma4": Family(
        config={"vision_config": _GEMMA4_TOWER},
        images={"max_soft_tokens": 70},
        adds=("post_per_layer_input_norm",),
    ),
    "smolvlm": Family(**_IDEFICS | {"processor": {"image_seq_len": 4, "video_processor": _VIDEOS}}),
    "idefics3": Family(**_IDEFICS),
    "mistral3": Family(
        image="[IMG]",
        config=_TOWER,
        stub=stand_in("[IMG]", "[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]", sized),
    ),
    "paligemma": Family(images={"size": _SIZE, "image_seq_length": 16}, config=_TOWER),
    "glm4v": Family(**_GLM, config={"text_config.rope_parameters": _PARTIAL}),
    "deepseek_vl": Family(
        images={"size": _SIZE}, processor={"num_image_tokens": 16}, config=_TOWER
    ),
    "cohere2_vision": Family(
        config=_TOWER, stub=stand_in("<image>", "<|START_OF_IMG|>" + "<image>" * 4, whole)
    ),
    "aya_vision": Family(
        token="<|IMG_PATCH|>",
        images={"size": _SIZE},
        processor={"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        config=_TOWER,
    ),
    "ovis2": Family(
        token="<IMG_ATOM>",
        images={"size": _SIZE},
        processor={"image_seq_length": 16},
        config=_TOWER,
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
        config={**_TOWER, "vision_config.intermediate_size": 128},
        mend=_llama4,
        note="transformers 5.24.0 can't run it (its own `forward` reads `image_outputs`, which its "
        "text model doesn't return); tried with that put right",
        stub=stand_in("<image>", "<|image_start|>" + "<|patch|>" * 4 + "<|image_end|>", whole),
    ),
    "mllama": Family(
        image="<|image|>",
        apart=True,
        images={"size": _SIZE},
        config={
            **_TOWER,
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
        processor={"video_processor": _VIDEOS},
        images={"patch_size": 16},
        config={"insert_layer_id": 0},
    ),
}
"""By the name that transformers gives it (`model_type`)."""


def _none(tokenizer: Any) -> Any:
    """No processor: the model is refused before one is looked at."""
    return tokenizer


_REFUSED = Family(stub=_none)
_TIMM = Family(missing="its tower needs timm")
_VISION = Family(missing="its image processor needs torchvision")
_LACKS = Family(missing="its configuration has no defaults that go together")
_GLM_POSITIONS = {"text_config.rope_parameters": _PARTIAL}
_VIDEO_START = {"vision_start_token_id": special_tokens().index("<|vision_start|>")}
_QWEN = "Qwen2VLImageProcessorPil"

FAMILIES |= {
    "apertus1p5": _LACKS,
    "aria": Family(missing="its tower has no small configuration"),
    "blip": _REFUSED,
    "blip-2": Family(missing="it has no chat template, and takes its question beside the picture"),
    "chameleon": Family(missing="its pictures are tokens of its checkpoint's vocabulary"),
    "cohere_compass": _LACKS,
    "cosmos3_edge": Family(**_PAD),
    "cosmos3_omni": Family(**_PAD, images=_CUT, uses=("Qwen3VLProcessor", _QWEN)),
    "deepseek_ocr2": _LACKS,
    "deepseek_vl_hybrid": Family(missing="its second tower has no small configuration"),
    "diffusion_gemma": _LACKS,
    "dots3_note": _LACKS,
    "emu3": Family(missing="its pictures are tokens of its checkpoint's vocabulary"),
    "ernie4_5_vl_moe": _LACKS,
    "evolla": Family(missing="it reads proteins, not pictures"),
    "exaone4_5": Family(**_PAD),
    "fast_vlm": _TIMM,
    "florence2": _REFUSED,
    "fuyu": Family(missing="its processor needs its checkpoint's tokenizer"),
    "gemma3n": _TIMM,
    "gemma4_unified": _VISION,
    "git": _REFUSED,
    "glm46v": Family(**_GLM, config=_GLM_POSITIONS),
    "glm4v_moe": Family(**_GLM, config=_GLM_POSITIONS, uses=("", "Glm4vImageProcessorPil")),
    "glm5_next": _LACKS,
    "glm_ocr": Family(
        **_GLM, config=_GLM_POSITIONS, uses=("Glm46VProcessor", "Glm46VImageProcessorPil")
    ),
    "glmga": Family(**_GLM, config=_GLM_POSITIONS, uses=("Glm46VProcessor", "")),
    "got_ocr2": Family(missing="its tower has no small configuration"),
    "granite4_vision": _LACKS,
    "granite_docling": Family(missing="its image processor has no small configuration"),
    "hunyuan_vl": _LACKS,
    "hy_v4_vl": _REFUSED,
    "hyperclovax_vision_v2": Family(**_PAD),
    "idefics": _REFUSED,
    "idefics2": Family(config=_TOWER, images={"size": {"shortest_edge": 56, "longest_edge": 56}}),
    "inkling2": _REFUSED,
    "inkling2_loop": _REFUSED,
    "inkling_mm_model": _VISION,
    "instructblip": Family(missing="it has no chat template, and takes its question twice"),
    "instructblipvideo": Family(missing="it reads videos, not pictures"),
    "janus": Family(images={"size": _SIZE}, processor={"num_image_tokens": 16}, config=_TOWER),
    "kimi_k25": _VISION,
    "kosmos-2": _REFUSED,
    "kosmos-2.5": _REFUSED,
    "lfm3_vl": Family(**_PAD, images=_CUT),
    "lighton_ocr": Family(image="<|image_pad|>"),
    "llava_next_video": Family(
        images={**_SQUARE, "image_grid_pinpoints": _PINPOINTS},
        processor=_LLAVA,
        config={**_TOWER, "image_grid_pinpoints": _PINPOINTS},
    ),
    "minicpm_ocr": _VISION,
    "minicpmv4_7": Family(
        processor={"video_processor": _VIDEOS},
        images={"patch_size": 16},
        config={"insert_layer_id": 0},
    ),
    "minimax_m3_vl": _VISION,
    "mistral4": Family(
        stub=_none,
        config={"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "num_key_value_heads": 4},
    ),
    "mistral_large4": _VISION,
    "muse_glimmer": _VISION,
    "muse_spark": _REFUSED,
    "nemotron_h_omni": _REFUSED,
    "paddleocr_vl": Family(config={"text_config.rope_parameters": _MROPE}),
    "perception_lm": _TIMM,
    "pi0": _REFUSED,
    "pix2struct": _REFUSED,
    "pp_chart2table": Family(missing="its tower has no small configuration"),
    "pp_formulanet": _REFUSED,
    "qianfan_ocr": Family(
        token="<IMG_CONTEXT>", images={"size": _SIZE}, processor={"image_seq_length": 4}
    ),
    "qwen2_5_omni_thinker": Family(
        **_PAD,
        config=_VIDEO_START | {"text_config.rope_parameters": _MROPE},
        uses=("Qwen2_5OmniProcessor", _QWEN),
    ),
    "qwen3_omni_moe_thinker": Family(
        **_PAD, images=_CUT, config=_VIDEO_START, uses=("Qwen3OmniMoeProcessor", _QWEN)
    ),
    "qwen4_exp": _LACKS,
    "shieldgemma2": Family(
        image="<begin_of_image>",
        token="<image_soft_token>",
        images={"size": _SIZE},
        processor={"image_seq_length": 4},
        config={**_TOWER, "mm_tokens_per_image": 4},
        uses=("Gemma3Processor", ""),
    ),
    "step3p7": _VISION,
    "t5gemma2": _REFUSED,
    "udop": _REFUSED,
    "unlimited_ocr": _VISION,
    "video_llama_3": Family(**_PAD, images=_CUT),
    "video_llava": Family(images=_SQUARE, processor=_LLAVA, config=_TOWER),
    "vipllava": Family(images=_SQUARE, processor=_LLAVA, config=_TOWER),
    "vision-encoder-decoder": _REFUSED,
}
