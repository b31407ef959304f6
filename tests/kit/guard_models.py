"""Tiny guard models."""

import torch
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from care.judges.config import GuardConfig, PictureConfig
from care.judges.guards import GuardJudge
from care.judges.shieldgemma import ShieldGemmaJudge
from kit.judge_models import tiny_text_model, tokenizer_with_words

TEXT_TEMPLATE = (
    "Policy: S1.{% for m in messages %}{{ '\n' + m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{{ '\nVerdict:' }}"
)


VISION_TEMPLATE = (
    "Policy: S1.{% for m in messages %}\n{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}\nVerdict:"
)


LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def speak(model, tokenizer, words=("\nsafe", "\nunsafe")):
    """Make the next token one of `words`, by the first entry of the last state."""
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
        head.zero_()
        for sign, word in zip((1.0, -1.0), words, strict=True):
            head[tokenizer.convert_tokens_to_ids(word), 0] = sign
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    return model.eval()


def text_guard(seed=0, **options):
    tokenizer = tokenizer_with_words()
    tokenizer.chat_template = TEXT_TEMPLATE
    model = tiny_text_model("llama", tokenizer, ("\nsafe", "\nunsafe"), seed)
    config = GuardConfig("guard", "tiny", batch_size=2, **options)
    return GuardJudge(model, tokenizer, config)


def image_tokens(*more):
    tokenizer = tokenizer_with_words()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|image|>", "<|python_tag|>", *more], "bos_token": "<eos>"}
    )
    return tokenizer


def mllama_guard():
    tokenizer = image_tokens()
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 32,
        "supported_aspect_ratios": [[1, 1]],
    }
    text = LAYERS | {
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = MllamaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = speak(MllamaForConditionalGeneration(config), tokenizer)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate"):  # they begin at 0, which is blind
                weight.fill_(1.0)
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=1)
    processor = MllamaProcessor(images, tokenizer, chat_template=VISION_TEMPLATE)
    return GuardJudge(model, processor, GuardConfig("vision", "tiny", vision=True))


def shieldgemma():
    tokenizer = tokenizer_with_words()
    special = {"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    for name, token in special.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    torch.manual_seed(0)
    config = ShieldGemma2Config(
        text_config={
            **LAYERS,
            "model_type": "gemma3_text",
            "vocab_size": len(tokenizer),
            "layer_types": ["full_attention"] * 2,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    config.yes_token_index = tokenizer.convert_tokens_to_ids("Yes")
    config.no_token_index = tokenizer.convert_tokens_to_ids("No")
    model = ShieldGemma2ForImageClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    processor = ShieldGemma2Processor(
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=(
            "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<boi>"
            "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
        ),
        image_seq_length=4,
    )
    return ShieldGemmaJudge(model, processor, PictureConfig("shieldgemma", "tiny"))
