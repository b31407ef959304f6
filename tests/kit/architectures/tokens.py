"""A tiny tokenizer that has the special tokens of every family, and a chat template for each."""

from collections.abc import Mapping
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kit.tiny import CORPUS

ORDINARY = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
NAMED = {
    "image_token": "<image>",
    "video_token": "<video>",
    "audio_token": "<audio>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
    "boa_token": "<begin_of_audio>",
    "eoa_token": "<end_of_audio>",
    "eof_token": "<end_of_frame>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "video_start_token": "<video_start>",
    "video_end_token": "<video_end>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "image_break_token": "[IMG_BREAK]",
    "image_boundary_token": "<fake_token_around_image>",
    "image_wrapper_token": "<image_wrapper>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
    "image_thumbnail_token": "<|img_thumbnail|>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "none_token": "<none>",
}
"""Tokens that tokenizers of families name; a family may call one otherwise."""

WRITTEN = """
<|image|> <|video|> <|image_pad|> <|video_pad|> <image_soft_token> <|imgpad|> <imgpad> [IMG]
[IMG_END] <|IMG_PATCH|> <|START_OF_IMG|> <|END_OF_IMG|> TILE TILE_GLOBAL <|patch|>
<|tile_x_separator|> <|tile_y_separator|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|>
<|end_of_video|> <im_patch> <im_col> <im_start> <im_end> <im_low> <low_res_im_start>
<frame_start> <frame_end> <IMG_ATOM> <IMG_COL> <IMG_END> <IMG_ROW> <IMG_START> <IMG_GRID>
<IMG_PRE> <|im_start|> <|im_end|> <|media_pad|> <|audio_comp_pad|> <|IMAGE_PAD|> <|VIDEO_PAD|>
<|VISION_START|> <|VISION_END|> <|unused_200053|> <|unused_200054|> <|content_image|>
<|content_audio_input|> <patch_newline> <|extra_201|> <image_placeholder>
<|kimi_k25_video_placeholder|> <|video_duration|> <row_1_col_1> <racm3:break> <eoss>
<start_of_image> <|vid_start|> <|vid_end|> <|vid_frame_separator|> <image_newline> <|vision_pad|>
"""
"""Tokens that processors write out."""


def special_tokens() -> list[str]:
    """All of them, each once; their places are their ids."""
    return list(dict.fromkeys([*ORDINARY, *NAMED.values(), *WRITTEN.split()]))


@lru_cache(maxsize=1)
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300 + len(special_tokens()) + 120,
        special_tokens=special_tokens(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    return tokenizer.to_str()


def tokenizer_for(named: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a family that gives some tokens these names."""
    tokens = {**NAMED, **named}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=tokens,
    )


def template(placeholder: str, first: str = "") -> str:
    """A chat template that writes `placeholder` where an image is, after `first`."""
    return (
        f"{first}"
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + placeholder
        + "{% else %}{{ c['text'] }}"
        "{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
