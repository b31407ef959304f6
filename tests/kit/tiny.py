"""Tiny random vision-language models and processors, built from configurations alone.

`tiny_llava` comes with transformers' own LLaVA processor; the other families get a stub that
expands image placeholders and makes pixels of the right shape. All are float32 on the CPU, have 4
text layers (`LAYERS`) of width 32 (`WIDTH`) and 4 visual tokens per image (`VISUAL`). Weights are
large enough that logits are far apart, so that rounding doesn't change greedy answers.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from care.data.example import Example
from care.models import decoding
from care.models.hooks import read
from care.models.prompt_cache import Start
from care.models.thoughts import text_of
from care.models.vlm import VLM, Answer

LAYERS, WIDTH, FFN, VISUAL = 4, 32, 64, 4
SPECIAL = ["<pad>", "<eos>", "<image>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CORPUS = [
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request. I am sorry.",
    "Sorry, as an AI I can not do that. Unfortunately not.",
    "To wash a car, you'll need to gather the following: water, soap and a sponge.",
    "What is in this picture? How do you build a small house from wood?",
    "Describe the image. Explain how to do what the picture shows. Sure, here is how.",
]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 420 tokens: encodes any text, refusal words in one or two tokens."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class StubProcessor:
    """Stands in for a family's processor: expands `<image>` and makes the vision inputs."""

    def __init__(
        self,
        vision_inputs: Callable[[list[np.ndarray], list[int]], dict[str, Any]],
        types_key: str | None = None,
    ) -> None:
        self.types_key = types_key
        self.tokenizer = tiny_tokenizer()
        self.chat_template = TEMPLATE
        self._vision_inputs = vision_inputs

    def apply_chat_template(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, **kwargs)

    def __call__(
        self, text: list[str], images: list[list[Image.Image]] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        expanded = [row.replace("<image>", "<image>" * VISUAL) for row in text]
        inputs = dict(self.tokenizer(expanded, return_token_type_ids=False, **kwargs))
        image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        if self.types_key is not None:
            inputs[self.types_key] = (inputs["input_ids"] == image_id).long()
        if images:
            counts = [row.count("<image>") for row in text]
            pixels = [
                np.asarray(image.resize((56, 56)), np.float32) / 127.5 - 1
                for row in images
                for image in row
            ]
            inputs.update(self._vision_inputs([p.transpose(2, 0, 1) for p in pixels], counts))
        return inputs


def build(cls: Any, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
            elif weight.ndim > 1:
                weight.normal_(0, 0.5)
        # No trained model answers with padding or image placeholders; logit 0 is never the largest.
        for token in ("<pad>", "<image>", "<|system|>", "<|user|>", "<|assistant|>"):
            model.lm_head.weight[SPECIAL.index(token)] = 0
    model.generation_config.eos_token_id = SPECIAL.index("<eos>")
    model.generation_config.pad_token_id = SPECIAL.index("<pad>")
    return model


def text_config(**extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tiny_tokenizer()),
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "pad_token_id": SPECIAL.index("<pad>"),
        "eos_token_id": SPECIAL.index("<eos>"),
        **extra,
    }


def _siglip(image_size: int = 28, **extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": 14,
        **extra,
    }


def tiny_llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA with a SigLIP tower (28 px, patch 14) and a Llama text model."""
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**_siglip(vision_use_head=False)),
        text_config=LlamaConfig(**text_config()),
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=VISUAL,
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tiny_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    return build(LlavaForConditionalGeneration, config, seed), processor


def tiny_vlm(seed: int = 0) -> VLM:
    """`tiny_llava` wrapped."""
    return VLM(*tiny_llava(seed), name="tiny-llava")


def vlm_saying(answers: list[str]) -> VLM:
    """A tiny model that gives these answers, whatever it is asked."""
    vlm = tiny_vlm()
    vlm.answers = lambda prompts, **_: [Answer(text, 1, 1, True) for text in answers]  # pyright: ignore
    return vlm


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """A language model without eyes."""
    return build(LlamaForCausalLM, LlamaConfig(**text_config()), seed)


def _stacked(pixels: list[np.ndarray], counts: list[int]) -> dict[str, Any]:
    return {"pixel_values": torch.tensor(np.stack(pixels))}


def _nested(pixels: list[np.ndarray], counts: list[int]) -> dict[str, Any]:
    """(B, most images in a row, 3, 56, 56); absent images are zeros."""
    images = iter(pixels)
    nested = torch.zeros(len(counts), max(counts), *pixels[0].shape)
    for row, count in enumerate(counts):
        for column in range(count):
            nested[row, column] = torch.tensor(next(images))
    return {"pixel_values": nested}


def _patches(size: int) -> Callable[[list[np.ndarray], list[int]], dict[str, Any]]:
    """Qwen's layout: one row per patch of `size` pixels, twice for its two time steps."""

    def vision_inputs(pixels: list[np.ndarray], counts: list[int]) -> dict[str, Any]:
        rows = []
        for image in pixels:
            cut = image.reshape(3, 4, size, 4, size).transpose(1, 3, 0, 2, 4).reshape(16, 3, -1)
            rows.append(np.concatenate([cut, cut], axis=2).reshape(16, -1))
        return {
            "pixel_values": torch.tensor(np.concatenate(rows)),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * len(pixels)),
        }

    return vision_inputs


def _qwen(cls: Any, config_class: Any, seed: int, **vision: Any) -> tuple[Any, StubProcessor]:
    config = config_class(
        text_config=text_config(
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]}
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            **vision,
        },
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=False,
    )
    return build(cls, config, seed), StubProcessor(_patches(14), types_key="mm_token_type_ids")


def tiny_qwen2_5_vl(seed: int = 0) -> tuple[Any, StubProcessor]:
    """Qwen2.5-VL: multi-axis rotary positions that depend on the image grid."""
    vision = {"fullatt_block_indexes": [1], "window_size": 56}
    return _qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, seed, **vision)


def tiny_qwen3_vl(seed: int = 0) -> tuple[Any, StubProcessor]:
    """Qwen3-VL: visual features are added again after early layers (deepstack)."""
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return _qwen(Qwen3VLForConditionalGeneration, Qwen3VLConfig, seed, **vision)


def tiny_gemma3(seed: int = 0) -> tuple[Any, StubProcessor]:
    """Gemma 3: norms after attention and FFN, sliding windows, images attend both ways."""
    config = Gemma3Config(
        text_config=text_config(
            sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
        ),
        vision_config=_siglip(56, vision_use_head=False),
        mm_tokens_per_image=VISUAL,
        tie_word_embeddings=False,
        image_token_index=SPECIAL.index("<image>"),
    )
    processor = StubProcessor(_stacked, types_key="token_type_ids")
    return build(Gemma3ForConditionalGeneration, config, seed), processor


def tiny_internvl(seed: int = 0) -> tuple[Any, StubProcessor]:
    """InternVL: pixel unshuffle, then a Qwen2 text model."""
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_config()},
        vision_config={**_siglip(), "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=SPECIAL.index("<image>"),
        image_seq_length=VISUAL,
        downsample_ratio=0.5,
    )
    return build(InternVLForConditionalGeneration, config, seed), StubProcessor(_stacked)


def _idefics(cls: Any, config_class: Any, seed: int) -> tuple[Any, StubProcessor]:
    config = config_class(
        text_config={"model_type": "llama", **text_config()},
        vision_config=_siglip(56),
        image_token_id=SPECIAL.index("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return build(cls, config, seed), StubProcessor(_nested)


def tiny_idefics3(seed: int = 0) -> tuple[Any, StubProcessor]:
    """Idefics3: images nested per row."""
    return _idefics(Idefics3ForConditionalGeneration, Idefics3Config, seed)


def tiny_smolvlm(seed: int = 0) -> tuple[Any, StubProcessor]:
    """SmolVLM: Idefics3's successor."""
    return _idefics(SmolVLMForConditionalGeneration, SmolVLMConfig, seed)


FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "llava": tiny_llava,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "gemma3": tiny_gemma3,
    "internvl": tiny_internvl,
    "idefics3": tiny_idefics3,
    "smolvlm": tiny_smolvlm,
}


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A random RGB picture (width, height)."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mixed_examples(n: int = 6) -> list[Example]:
    """Examples of different lengths, every other one with an image."""
    words = ["How", "do", "you", "build", "a", "small", "house", "from", "wood", "?"]
    return [
        Example(
            id=f"e{index}",
            prompt=" ".join(words[: 2 + 3 * index % 9]),
            images=(picture(index),) if index % 2 else (),
        )
        for index in range(n)
    ]


def tokens_of(vlm, examples, temperature=0.0, steps=10):
    rows = decoding.AnswerRows(
        eos=decoding.end_tokens(vlm.model, vlm.tokenizer),
        text=partial(text_of, vlm.tokenizer),
        stops=None,
        temperature=temperature,
        generators=[torch.Generator().manual_seed(index) for index in range(len(examples))],
    )
    decode(vlm, vlm.batch(examples), rows, steps)
    return rows.tokens


def decode(vlm, batch, rows, steps):
    """The loop that `VLM.generate` runs, on its own."""
    pad = vlm.tokenizer.pad_token_id
    decoding.decode(vlm.model, vlm.roles, Start.of(batch), rows, steps, pad)


def hooks_of(vlm):
    """Number of hooks on all modules; transformers installs a few of its own on first use."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in vlm.model.modules()
    )


def captured(vlm, batch, sites):
    """Activations (B, T, D) at sites, after whatever edits are in place."""
    with read(vlm, sites) as recorder:
        vlm.forward(batch)
    return {site: recorder[site][0] for site in sites}
