"""Assembling: a folder that stock classes load, with the weights of both parts."""

import numpy as np
import torch
from PIL import Image

from care.models.embedded import assemble
from kit.embedded_parts import KV_HEADS, assembled, text_gguf, tower_onnx  # noqa: F401


def test_text_weights_come_back_in_the_order_of_transformers(text_gguf):
    path, expected = text_gguf
    config, state, tokenizer = assemble.text_parts(path)
    assert set(state) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)
    assert config.num_key_value_heads == KV_HEADS and config.tie_word_embeddings
    assert tokenizer.eos_token_id == 2 and tokenizer.pad_token_id == 2
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hello"))[0] == "hel"
    text = "<|im_start|>user\n 12 naïve cafés 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<file_sep>") == [5]


def test_stock_classes_load_the_assembled_folder(assembled):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, info = AutoModelForImageTextToText.from_pretrained(
        assembled, dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    processor = AutoProcessor.from_pretrained(assembled)
    picture = Image.new("RGB", (50, 30), "red")
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\n<file_sep>What?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 36
    assert inputs["pixel_values"].shape == (1, 3, 84, 84)
    answer = model.generate(**inputs.to(torch.bfloat16), max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_chat_template_takes_strings_and_adds_no_system_prompt(assembled):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(assembled)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
    ]
    whole = processor.apply_chat_template(messages)
    assert whole == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
    )
    assert processor.apply_chat_template(messages[1:2]) == "<|im_start|>user\nHi<|im_end|>\n"


def test_weights_have_the_names_that_vllm_expects(assembled):
    from safetensors import safe_open

    with safe_open(assembled / "model.safetensors", "pt") as file:
        names = set(file.keys())
    starts = ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.")
    assert all(name.startswith(starts) for name in names)
