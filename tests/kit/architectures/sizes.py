"""Numbers that several families are built with.

Towers see 56 pixels in patches of 14 where a family lets them, so that an image is a few tokens.
"""

from types import SimpleNamespace
from typing import Any

SIZE = {"height": 56, "width": 56}
TOWER = {"vision_config.image_size": 56, "vision_config.patch_size": 14}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
LLAVA: dict[str, Any] = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
SQUARE = {"size": {"shortest_edge": 56}, "crop_size": SIZE}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
PARTIAL = {**MROPE, "partial_rotary_factor": 1.0}
PAD = {"image": "<|vision_start|><|image_pad|><|vision_end|>", "token": "<|image_pad|>"}
CUT = {"patch_size": 16}
GLM = {"image": "<|begin_of_image|><|image|><|end_of_image|>", "token": "<|image|>"}
VIDEOS = SimpleNamespace(num_frames=1, fps=1, slice_mode=False, downsample_mode="16x")
"""What a processor asks of its processor of videos when it is asked for none."""

GEMMA4_TOWER = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "position_embedding_size": 1024,
}
