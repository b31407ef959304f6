"""A family's own configuration with small numbers: its structure stays, its widths and depths go.

Every number is found by its name, wherever it stands: `hidden_size` and the like become `WIDTH`,
depths `LAYERS` or `TOWER_LAYERS`, and so on. A list of the kinds of layers is cut so that
each kind is left. Ids of tokens become those of the tiny tokenizer.
"""

from collections.abc import Mapping
from typing import Any

LAYERS, TOWER_LAYERS, WIDTH, FFN, HEADS, EXPERTS = 4, 2, 32, 64, 4, 4


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WIDTHS = _words(
    "hidden_size embed_dim d_model dim n_embd width out_hidden_size text_hidden_size "
    "projection_dim projector_hidden_size vision_output_dim projection_hidden_size "
    "vision_hidden_size aligner_hidden_size language_hidden_size output_dim "
    "projector_input_dim projector_output_dim "
    "hidden_size_per_layer_input embed_size qformer_hidden_size output_hidden_size "
    "cross_attention_hidden_size encoder_hidden_size adapter_in_dim adapter_out_dim "
    "adapter_input_size"
)
_FFNS = _words(
    "intermediate_size ffn_dim mlp_dim intermediate_size_mlp moe_intermediate_size "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size dense_intermediate_size "
    "encoder_ffn_dim decoder_ffn_dim d_ff block_ff_dim adapter_hidden_size"
)
_HEADS = _words(
    "num_attention_heads num_heads attention_heads n_head encoder_attention_heads "
    "decoder_attention_heads num_head linear_num_value_heads"
)
_KV_HEADS = _words(
    "num_key_value_heads num_global_key_value_heads linear_num_key_heads "
    "kv_heads swa_num_key_value_heads"
)
_HEAD_DIMS = _words(
    "head_dim global_head_dim linear_key_head_dim linear_value_head_dim qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim swa_head_dim attention_head_dim"
)
_DEPTHS = _words(
    "num_hidden_layers depth encoder_layers decoder_layers n_layer num_layers "
    "num_global_layers n_layers resampler_depth"
)
_EXPERTS = _words(
    "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts"
)
_FIXED: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "max_position_embeddings": 4096,
    "sliding_window": 16,
    "attention_dropout": 0.0,
    "num_kv_shared_layers": 0,
}
_INDICES: dict[str, Any] = {
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0, 1],
    "cross_attention_layers": [1],
    "vision_feature_layer": -1,
    "mrope_section": [2, 1, 1],
}
_TOWERS = ("vision", "audio", "speech", "qformer", "resampler", "vq", "perceiver", "aligner", "vit")


def shrunk(config: Any, tokens: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
    """The fields of a configuration with small numbers, parts included.

    `tokens` holds the ids of special tokens by the name of the field that states them, without
    `_id`; a field that isn't among them gets one that stands for nothing.
    """
    return _part(config.to_dict(), False, tokens, vocabulary)


def with_changes(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with what stands at dotted paths replaced; a part that isn't there is made."""
    for path, value in changes.items():
        *parents, key = path.split(".")
        part = fields
        for parent in parents:
            part = part.setdefault(parent, {})
        part[key] = value
    return fields


def _part(
    fields: dict[str, Any], tower: bool, tokens: Mapping[str, int], vocabulary: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    depth = TOWER_LAYERS if tower else LAYERS
    for key, value in fields.items():
        if key == "per_layer_config" and value:
            found[key] = {int(layer): one for layer, one in value.items() if int(layer) < depth}
        elif isinstance(value, list) and len(value) == fields.get("num_hidden_layers"):
            found[key] = _cut(value, depth)
        elif isinstance(value, dict) and ("model_type" in value or key.endswith("_config")):
            inner = tower or any(word in key for word in _TOWERS)
            found[key] = _part(value, inner, tokens, vocabulary)
        else:
            found[key] = _number(key, value, tower, tokens, vocabulary)
    return found


def _number(key: str, value: Any, tower: bool, tokens: Mapping[str, int], vocabulary: int) -> Any:
    depth = TOWER_LAYERS if tower else LAYERS
    if key in _INDICES and value is not None:
        return _INDICES[key]
    if key == "image_patch_id":
        return tokens["image_token"]
    if key.endswith(("_token_id", "_token_index")):
        name = key.rpartition("_")[0]
        return tokens.get(name, tokens["none_token"])
    if key == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return value | {"mrope_section": _INDICES["mrope_section"]}
    if key == "tie_word_embeddings":
        return False
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value
    if key.startswith("vocab_size"):
        return vocabulary
    if key in _FIXED:
        return _FIXED[key]
    for names, small in (
        (_WIDTHS, WIDTH),
        (_FFNS, FFN),
        (_HEADS, HEADS),
        (_KV_HEADS, HEADS // 2),
        (_HEAD_DIMS, WIDTH // HEADS),
        (_DEPTHS, depth),
        (_EXPERTS, EXPERTS),
    ):
        if key in names:
            return small
    return value


def _cut(kinds: list[Any], depth: int) -> list[Any]:
    """The first `depth` of some kinds of layers, the last of them one that is missing there."""
    short = kinds[:depth]
    missing = [kind for kind in dict.fromkeys(kinds) if kind not in short]
    return short[: depth - len(missing[:1])] + missing[:1]
