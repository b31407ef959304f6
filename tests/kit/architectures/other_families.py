"""What has to be said of the families that fewer people run (`families` has the others)."""

from typing import Any

from kit.architectures.building import Family
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
from kit.architectures.stubs import gridded, last, placed, sized, stand_in, strung, timed, whole
from kit.architectures.tokens import special_tokens


def _none(tokenizer: Any) -> Any:
    """No processor: the model is refused before one is looked at."""
    return tokenizer


_REFUSED = Family(stub=_none)
_TIMM = Family(missing="its tower needs timm")
_SAM_SIZE = {"height": 128, "width": 128}


def _sam(part: str) -> dict[str, Any]:
    """A tower like that of Segment Anything: 128 pixels in patches of 16, and 4 tokens of them."""
    small = {"image_size": 128, "window_size": 4, "global_attn_indexes": [1], "output_channels": 16}
    return {f"{part}.{key}": value for key, value in small.items()}


_CODE = len(special_tokens()) - 10
"""The first of ten ids that stand for what is in a picture."""
_CODES = {"<image>": special_tokens().index("<image>")}
_DOTS_SLIDING = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_GLM_POSITIONS = {"text_config.rope_parameters": PARTIAL}
_VIDEO_START = {"vision_start_token_id": special_tokens().index("<|vision_start|>")}
_QWEN = "Qwen2VLImageProcessorPil"

OTHERS: dict[str, Family] = {
    "apertus1p5": Family(
        config={
            "image_token_offset": _CODE,
            "audio_token_offset": _CODE + 10,
            "audio_config.codebook_dim": 32,
            "audio_config.codebook_size": 10,
            "vision_config.codebook_size": 10,
            "vision_config.base_channels": 32,
            "vision_config.latent_channels": 32,
            "vision_config.channel_multiplier": [1, 1, 1, 1],
            "vision_config.num_res_blocks": 1,
            "vision_config.resolution": 56,
            "vision_config.attn_resolutions": [7],
        },
        stub=stand_in("<image>", "<begin_of_image>" + "<image>" * 49 + "<end_of_image>", sized),
    ),
    "aria": Family(
        processor={"size_conversion": {490: 4}, "images_kwargs": {"max_image_size": 490}},
        config={
            "vision_config.image_size": 490,
            "vision_config.patch_size": 70,
            "projector_patch_to_query_dict": {49: 4},
        },
    ),
    "blip": _REFUSED,
    "blip-2": _REFUSED,
    "chameleon": Family(
        images={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        processor={"image_seq_length": 4},
        named={"sep_token": "<|end|>"},
        config={
            "vocabulary_map": _CODES | {f"IMGIMG{'ABCDEFGHIJ'[n]}Z": _CODE + n for n in range(10)},
            "vq_config.num_embeddings": 10,
            "vq_config.resolution": 32,
            "vq_config.base_channels": 32,
            "vq_config.channel_multiplier": [1, 1, 1, 1, 1],
            "vq_config.num_res_blocks": 1,
            "vq_config.latent_channels": 32,
        },
    ),
    "cohere_compass": Family(
        image="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
        token="<|IMAGE_PAD|>",
        named={"vision_start_token": "<|VISION_START|>", "vision_end_token": "<|VISION_END|>"},
        images=CUT,
        config={"text_config.rope_parameters": {"full_attention": MROPE}},
    ),
    "cosmos3_edge": Family(**PAD),
    "cosmos3_omni": Family(**PAD, images=CUT, uses=("Qwen3VLProcessor", _QWEN)),
    "deepseek_ocr2": Family(
        images={"size": {"height": 192, "width": 192}},
        processor={"patch_size": 4, "images_kwargs": {"crop_to_patches": False}},
        config={
            **_sam("vision_config.sam_config"),
            "vision_config.sam_config.image_size": 192,
            "vision_config.sam_config.downsample_channels": [24, 32],
            "text_config.mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "text_config.num_experts_per_tok": 2,
        },
    ),
    "deepseek_vl_hybrid": Family(
        images={
            "size": {"height": 64, "width": 64},
            "high_res_size": {"height": 128, "width": 128},
        },
        processor={"num_image_tokens": 16},
        config={
            "vision_config.image_size": 64,
            "vision_config.patch_size": 16,
            **_sam("high_res_vision_config"),
        },
    ),
    "diffusion_gemma": Family(
        stub=_none,
        config={
            "vision_config": GEMMA4_TOWER,
            "text_config.num_experts": 4,
            "text_config.top_k_experts": 2,
            "text_config.moe_intermediate_size": 32,
        },
    ),
    "dots3_note": Family(
        token="<|imgpad|>",
        image="<img><|imgpad|></img>",
        images={"temporal_patch_size": 1},
        config={
            "text_config.num_key_value_heads": 4,
            "text_config.head_dim": 16,
            "text_config.index_n_heads": 2,
            "text_config.index_head_dim": 8,
            "text_config.per_layer_config": {2: _DOTS_SLIDING, 3: _DOTS_SLIDING},
            "text_config.shared_experts_intermediate_size": 32,
            "audio_config.downsample_hidden_size": 8,
        },
    ),
    "emu3": Family(
        images={"min_pixels": 32 * 32, "max_pixels": 32 * 32},
        config={
            "vocabulary_map": _CODES
            | {"<|extra_200|>": _CODE - 1}
            | {f"<|visual token {n:06}|>": _CODE + n for n in range(10)},
            "vq_config.codebook_size": 10,
            "vq_config.base_channels": 32,
            "vq_config.channel_multiplier": [1, 1, 1, 1],
            "vq_config.num_res_blocks": 1,
            "vq_config.embed_dim": 4,
        },
    ),
    "ernie4_5_vl_moe": Family(
        image="<|image_start|><image><|image_end|>",
        token="<image>",
        images={"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}},
        config={
            "text_config.rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
            "text_config.moe_intermediate_size": [64, 32],
        },
    ),
    "evolla": Family(missing="it reads proteins, not pictures"),
    "exaone4_5": Family(**PAD),
    "fast_vlm": _TIMM,
    "florence2": _REFUSED,
    "fuyu": Family(missing="its processor needs its checkpoint's tokenizer"),
    "gemma3n": _TIMM,
    "gemma4_unified": Family(
        config={
            "vision_config": {
                "patch_size": 14,
                "pooling_kernel_size": 1,
                "mm_embed_dim": 32,
                "mm_posemb_size": 16,
                "output_proj_dims": 32,
            },
        },
        stub=stand_in(
            "<image>", "<begin_of_image>" + "<image>" * 16 + "<end_of_image>", placed, "<image>"
        ),
    ),
    "git": _REFUSED,
    "glm46v": Family(**GLM, config=_GLM_POSITIONS),
    "glm4v_moe": Family(**GLM, config=_GLM_POSITIONS, uses=("", "Glm4vImageProcessorPil")),
    "glm5_next": Family(
        stub=_none,
        config={
            "text_config.num_key_value_heads": 4,
            "text_config.linear_num_heads": 4,
            "text_config.linear_head_dim": 8,
            "text_config.qk_rope_head_dim": 0,
            "text_config.head_dim": 0,
            "text_config.index_head_dim": 8,
            "text_config.index_n_heads": 2,
            "vision_config.projection_intermediate_size": 64,
        },
    ),
    "glm_ocr": Family(
        **GLM, config=_GLM_POSITIONS, uses=("Glm46VProcessor", "Glm46VImageProcessorPil")
    ),
    "glmga": Family(**GLM, config=_GLM_POSITIONS, uses=("Glm46VProcessor", "")),
    "got_ocr2": Family(
        image="<img><imgpad></img>",
        token="<imgpad>",
        images={"size": _SAM_SIZE},
        processor={"num_image_tokens": 4},
        config=_sam("vision_config"),
    ),
    "granite4_vision": Family(
        images={**SQUARE, "image_grid_pinpoints": PINPOINTS},
        processor={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
            "downsample_rate": "1/2",
        },
        config={
            **TOWER,
            "vision_config.hidden_size": 64,
            "image_grid_pinpoints": PINPOINTS,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[1, 0], [2, 1]],
            "spatial_target_layers": [1, 2, 3, 0],
        },
    ),
    "granite_docling": Family(
        images={"size": {"height": 64, "width": 64}},
        processor={"image_seq_len": 4},
        config={
            "vision_config.image_size": 64,
            "vision_config.scale_factor": 2,
        },
    ),
    "hunyuan_vl": Family(
        image="<|image_start|><image><|image_end|>",
        token="<image>",
        images={"size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}},
        config={
            "text_config.head_dim": 8,
            "text_config.rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]},
        },
        upstream={
            "padding, batch": "its positions count the pictures of a whole batch, so that a "
            "prompt's logits depend on the pictures in the rows before it"
        },
    ),
    "hy_v4_vl": _REFUSED,
    "hyperclovax_vision_v2": Family(**PAD),
    "idefics": _REFUSED,
    "idefics2": Family(config=TOWER, images={"size": {"shortest_edge": 56, "longest_edge": 56}}),
    "inkling2": _REFUSED,
    "inkling2_loop": _REFUSED,
    "inkling_mm_model": Family(
        token="<|unused_200054|>",
        config={"vision_config.patch_size": 14},
        stub=stand_in("<image>", "<|content_image|>" + "<|unused_200054|>" * 16, last),
    ),
    "instructblip": _REFUSED,
    "instructblipvideo": Family(missing="it reads videos, not pictures"),
    "janus": Family(images={"size": SIZE}, processor={"num_image_tokens": 16}, config=TOWER),
    "kimi_k25": Family(
        image="<|media_pad|>",
        config={"text_config.num_key_value_heads": 4},
        stub=stand_in("<|media_pad|>", "<|media_pad|>" * 4, gridded),
    ),
    "kosmos-2": _REFUSED,
    "kosmos-2.5": _REFUSED,
    "lfm3_vl": Family(**PAD, images=CUT),
    "lighton_ocr": Family(image="<|image_pad|>"),
    "llava_next_video": Family(
        images={**SQUARE, "image_grid_pinpoints": PINPOINTS},
        processor=LLAVA,
        config={**TOWER, "image_grid_pinpoints": PINPOINTS},
    ),
    "minicpm_ocr": Family(
        config={**TOWER, "vision_config.insert_layer_id": 0, "insert_layer_id": 0},
        stub=stand_in("<image>", "<|image_start|>" + "<image>" * 4 + "<|image_end|>", strung),
    ),
    "minicpmv4_7": Family(
        processor={"video_processor": VIDEOS},
        images={"patch_size": 16},
        config={"insert_layer_id": 0},
    ),
    "minimax_m3_vl": Family(
        config={
            "vision_config.hidden_size": 64,
            "text_config.rotary_dim": 8,
            "text_config.index_n_heads": 2,
            "text_config.index_head_dim": 8,
            "text_config.index_block_size": 16,
            "text_config.shared_intermediate_size": 32,
        },
        stub=stand_in("<image>", "<|vision_start|>" + "<image>" * 4 + "<|vision_end|>", timed),
    ),
    "mistral4": Family(
        stub=_none,
        config={"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "num_key_value_heads": 4},
    ),
    "mistral_large4": Family(
        image="[IMG]",
        stub=stand_in("[IMG]", "[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]", sized),
        config={
            **TOWER,
            "text_config.qk_rope_head_dim": 4,
            "text_config.qk_nope_head_dim": 4,
            "text_config.num_key_value_heads": 4,
            "text_config.kv_source_layers": [0, 1, 2, 3],
            "text_config.index_n_heads": 2,
            "text_config.index_head_dim": 8,
        },
    ),
    "muse_glimmer": Family(
        token="<|patch|>",
        config={"out_hidden_size": 128},
        stub=stand_in("<image>", "<|image_start|>" + "<|patch|>" * 4 + "<|image_end|>", timed),
    ),
    "muse_spark": _REFUSED,
    "nemotron_h_omni": _REFUSED,
    "paddleocr_vl": Family(config={"text_config.rope_parameters": MROPE}),
    "perception_lm": _TIMM,
    "pi0": _REFUSED,
    "pix2struct": _REFUSED,
    "pp_chart2table": Family(
        image="<img>" + "<imgpad>" * 4 + "</img>",
        token="<imgpad>",
        images={"size": _SAM_SIZE},
        config=_sam("vision_config"),
    ),
    "pp_formulanet": _REFUSED,
    "qianfan_ocr": Family(
        token="<IMG_CONTEXT>", images={"size": SIZE}, processor={"image_seq_length": 4}
    ),
    "qwen2_5_omni_thinker": Family(
        **PAD,
        config=_VIDEO_START | {"text_config.rope_parameters": MROPE},
        uses=("Qwen2_5OmniProcessor", _QWEN),
    ),
    "qwen3_omni_moe_thinker": Family(
        **PAD, images=CUT, config=_VIDEO_START, uses=("Qwen3OmniMoeProcessor", _QWEN)
    ),
    "qwen4_exp": Family(
        stub=_none,
        config={
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 8,
            "text_config.indexer_budget": 16,
            "text_config.indexer_compress_ratio": 4,
        },
    ),
    "shieldgemma2": Family(
        image="<begin_of_image>",
        token="<image_soft_token>",
        images={"size": SIZE},
        processor={"image_seq_length": 4},
        config={**TOWER, "mm_tokens_per_image": 4},
        uses=("Gemma3Processor", ""),
    ),
    "step3p7": Family(
        token="<im_patch>",
        config={**TOWER, "text_config.sliding_window": 16},
        stub=stand_in("<image>", "<im_start><im_patch><im_end>", whole),
    ),
    "t5gemma2": _REFUSED,
    "udop": _REFUSED,
    "unlimited_ocr": Family(
        config={
            **_sam("vision_config.sam_config"),
            "vision_config.sam_config.image_size": 56,
            "vision_config.sam_config.patch_size": 7,
            "vision_config.sam_config.downsample_channels": [24, 32],
            "vision_config.encoder_config.image_size": 28,
            "text_config.num_key_value_heads": 4,
        },
        stub=stand_in("<image>", "<image>" * 7, whole),
    ),
    "video_llama_3": Family(**PAD, images=CUT),
    "video_llava": Family(images=SQUARE, processor=LLAVA, config=TOWER),
    "vipllava": Family(images=SQUARE, processor=LLAVA, config=TOWER),
    "vision-encoder-decoder": _REFUSED,
}
