"""Reading the parts, rewriting the tower, assembling and loading; all on tiny stand-ins.

The GGUF and ONNX files are written here byte by byte from their specifications, so that the
readers aren't checked against themselves. Tests marked `embedded` use the real thing.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from care.errors import ArtefactError, UsageError
from care.models.embedded import assemble, cache, tower
from care.models.embedded.formats import read_gguf, read_onnx

WIDTH, FFN, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 2, 1
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"]


# --- writers ------------------------------------------------------------------------------------


def _gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf_value(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _gguf_string(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    assert isinstance(value, list)
    items = [_gguf_value(item) for item in value]
    return (
        struct.pack("<I", 9)
        + items[0][:4]
        + struct.pack("<Q", len(items))
        + b"".join(item[4:] for item in items)
    )


def write_gguf(path: Path, fields: dict, tensors: dict[str, tuple[int, list[int], bytes]]) -> None:
    """Tensors: name -> (type, shape as in torch, raw blocks)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(_gguf_string(name) + _gguf_value(value) for name, value in fields.items())
    body = b""
    for name, (kind, shape, raw) in tensors.items():
        body += b"\0" * (-len(body) % 32)
        head += _gguf_string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kind, len(body))
        body += raw
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def write_onnx(path: Path, tensors: dict[str, np.ndarray], nodes: dict[str, list[str]]) -> None:
    graph = b""
    for name, inputs in nodes.items():
        node = b"".join(_field(1, i.encode()) for i in inputs)
        graph += _field(1, node + _field(3, name.encode()))
    for name, array in tensors.items():
        dims = _field(1, b"".join(_varint(n) for n in array.shape))
        kind = b"\x10" + _varint(1)
        raw = _field(9, array.astype("<f4").tobytes())
        graph += _field(5, dims + kind + _field(8, name.encode()) + raw)
    path.write_bytes(b"\x08\x08" + _field(7, graph))


def _permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's reordering of query and key rows when it writes GGUF."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


@pytest.fixture(scope="module")
def text_gguf(tmp_path_factory):
    """A tiny Llama in GGUF and its weights under the names of transformers."""
    from tokenizers import pre_tokenizers

    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["he", "hel"]
    fields = {
        "llama.vocab_size": len(tokens),
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FFN,
        "llama.block_count": LAYERS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.context_length": 512,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": ["h e", "he l"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
    }
    rng = np.random.default_rng(0)
    head = WIDTH // HEADS
    shapes = {
        "attn_q": ("self_attn.q_proj", (WIDTH, WIDTH)),
        "attn_k": ("self_attn.k_proj", (KV_HEADS * head, WIDTH)),
        "attn_v": ("self_attn.v_proj", (KV_HEADS * head, WIDTH)),
        "attn_output": ("self_attn.o_proj", (WIDTH, WIDTH)),
        "ffn_gate": ("mlp.gate_proj", (FFN, WIDTH)),
        "ffn_up": ("mlp.up_proj", (FFN, WIDTH)),
        "ffn_down": ("mlp.down_proj", (WIDTH, FFN)),
        "attn_norm": ("input_layernorm", (WIDTH,)),
        "ffn_norm": ("post_attention_layernorm", (WIDTH,)),
    }
    names = {"token_embd.weight": ("embed_tokens.weight", (len(tokens), WIDTH))}
    names["output_norm.weight"] = ("norm.weight", (WIDTH,))
    for layer in range(LAYERS):
        for source, (target, shape) in shapes.items():
            names[f"blk.{layer}.{source}.weight"] = (f"layers.{layer}.{target}.weight", shape)
    expected, tensors = {}, {}
    for source, (target, shape) in names.items():
        expected[target] = value = rng.normal(0, 0.2, shape).astype(np.float32)
        if "attn_q" in source or "attn_k" in source:
            value = _permute(value, HEADS if "attn_q" in source else KV_HEADS)
        tensors[source] = (0, list(shape), value.tobytes())
    path = tmp_path_factory.mktemp("text") / "tiny.gguf"
    write_gguf(path, fields, tensors)
    return path, expected


@pytest.fixture(scope="module")
def tower_onnx(tmp_path_factory):
    """A tiny DINOv2 of transformers and its weights in ONNX, named as the exporter names them."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=518,
        patch_size=14,
        layerscale_value=0.7,
    )
    model = Dinov2Model(config).eval()
    torch.manual_seed(0)  # not before: how much a new model draws depends on transformers' version
    tensors, nodes = {}, {}
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.15)
        array = parameter.detach().numpy().copy()
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(f"attention.{new}", f"attention.attention.{old}")
        name = "backbone." + name.replace("attention.o_proj", "attention.output.dense")
        if name.endswith("position_embeddings"):
            tensors["onnx::Concat_7"] = array[:, :1]
            tensors["onnx::Reshape_8"] = array[:, 1:]
        elif "encoder" in name and name.endswith(".weight") and array.ndim == 2:
            stem = name.removesuffix(".weight").split("encoder.layer.")[1]
            layer, _, route = stem.partition(".")
            key = f"onnx::MatMul_{len(nodes)}"
            nodes[f"/backbone/encoder/layer.{layer}/{route.replace('.', '/')}/MatMul"] = ["x", key]
            tensors[key] = array.T.copy()
        elif not name.endswith("mask_token"):
            tensors[name] = array
    path = tmp_path_factory.mktemp("tower") / "tiny.onnx"
    write_onnx(path, tensors, nodes)
    return path, model


# --- formats ------------------------------------------------------------------------------------


def test_gguf_blocks_are_dequantised_as_specified(tmp_path):
    rng = np.random.default_rng(1)
    d, m = np.float16(0.25), np.float16(-1.5)
    nibbles, eights = rng.integers(0, 16, 32), rng.integers(-127, 128, 32).astype(np.int8)
    packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    tensors = {
        "four": (3, [1, 32], d.tobytes() + m.tobytes() + packed),
        "eight": (8, [32], d.tobytes() + eights.tobytes()),
        "half": (1, [2, 2], np.arange(4, dtype=np.float16).tobytes()),
    }
    fields = {"a": "text", "b": [1, 2, 3], "c": ["x", "yz"]}
    write_gguf(tmp_path / "x.gguf", fields, tensors)
    read_fields, read = read_gguf(tmp_path / "x.gguf")
    assert read_fields == fields
    np.testing.assert_array_equal(read["four"], (0.25 * nibbles - 1.5)[None].astype(np.float32))
    np.testing.assert_array_equal(read["eight"], 0.25 * eights.astype(np.float32))
    np.testing.assert_array_equal(read["half"], [[0, 1], [2, 3]])


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "no.gguf"
    for content in (b"", b"PK", b"nothing of the kind, but long enough to have a header"):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match="GGUF"):
            read_gguf(path)
    with pytest.raises(ArtefactError, match="ONNX"):
        read_onnx(path)
    write_gguf(path, {}, {"t": (26, [36], b"\0" * 144)})  # whole numbers aren't weights
    with pytest.raises(ArtefactError, match="GGUF"):
        read_gguf(path)


def test_truncated_gguf_is_refused(text_gguf, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(text_gguf[0].read_bytes()[:-4096])
    with pytest.raises(ArtefactError, match="GGUF"):
        read_gguf(path)


# --- conversion ---------------------------------------------------------------------------------


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


def test_tower_with_class_token_is_dinov2(tower_onnx):
    path, model = tower_onnx
    state, class_token = tower.convert(path, grid=6)
    pixels = torch.randn(3, 3, 84, 84)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 1:]
        found = tower.features(pixels, state, class_token)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_refit_makes_up_for_the_class_token(tower_onnx):
    state, class_token = tower.convert(tower_onnx[0], grid=6)
    seen, unseen = tower.synthetic_pictures(200, 84), tower.synthetic_pictures(40, 84, seed=9)
    fitted = tower.refit(state, class_token, seen)
    changed = {name for name in state if not torch.equal(state[name], fitted[name])}
    assert {name.split(".")[-2] for name in changed} == {"out_proj", "fc2"}
    # Random weights gain less on unseen pictures than trained ones do.
    for pictures, share in ((seen, 0.4), (unseen, 0.8)):
        with torch.no_grad():
            wanted = tower.features(pictures, state, class_token)
            dropped, refitted = (
                (tower.features(pictures, s) - wanted).pow(2).mean() for s in (state, fitted)
            )
        assert refitted < share * dropped


def test_synthetic_pictures_are_seeded_and_normalised():
    first, again = (tower.synthetic_pictures(6, 84) for _ in range(2))
    assert first.shape == (6, 3, 84, 84)
    assert torch.equal(first, again)
    assert -2.2 < first.min() < first.max() < 2.7


@pytest.fixture(scope="module")
def assembled(text_gguf, tower_onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("assembled") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tower, "N_PICTURES", 20)
        assemble.assemble_base(text_gguf[0], tower_onnx[0], out)
    return out


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


# --- loading ------------------------------------------------------------------------------------


@pytest.fixture
def cached(assembled, tmp_path):
    cache.base_folder(tmp_path).symlink_to(assembled)
    return tmp_path


def test_load_gives_the_dtype_asked_for(cached):
    for dtype in ("float32", torch.bfloat16):
        model, processor = cache.load(dtype, cached, trained=False)
        assert model.dtype == cache.resolve_dtype(dtype) and not model.training
    assert processor.image_token == "<file_sep>"


def test_base_text_model_has_the_untouched_weights(cached, text_gguf):
    model, tokenizer = cache.base_text_model("float32", cached)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for name, value in text_gguf[1].items():
        expected = torch.from_numpy(value).to(torch.bfloat16).float()
        assert torch.equal(model.model.get_parameter(name), expected), name
    logits = model(**tokenizer("hello", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()


def test_a_damaged_cache_is_one_sentence(tmp_path):
    folder = cache.base_folder(tmp_path)
    folder.mkdir()
    (folder / "config.json").write_text("{")
    for function in (cache.load, cache.base_text_model):
        with pytest.raises(ArtefactError, match="delete the folder"):
            function("float32", tmp_path)


def test_trained_weights_are_folded_in(cached, tmp_path):
    from safetensors.torch import save_file

    model, _ = cache.load("float32", cached, trained=False)
    name = "model.multi_modal_projector.linear_1.weight"
    wanted = torch.randn(model.get_parameter(name).shape)
    path = tmp_path / "weights.safetensors"
    save_file({name: wanted}, path)
    cache.apply_trained(model, path)
    assert torch.equal(model.get_parameter(name), wanted)
    path.write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match="damaged"):
        cache.apply_trained(model, path)
    with pytest.raises(ArtefactError, match="missing"):
        cache.apply_trained(model, tmp_path / "absent")


def test_resolve_dtype():
    assert cache.resolve_dtype("auto") in (torch.bfloat16, torch.float32)
    assert cache.resolve_dtype("float16") is torch.float16
    for wrong in ("int8", "nonsense", 3, torch.int64, "nn"):
        with pytest.raises(UsageError, match="dtype"):
            cache.resolve_dtype(wrong)


# --- the real thing -----------------------------------------------------------------------------


@pytest.mark.embedded
def test_the_real_text_model_knows_paris():
    model, tokenizer = cache.base_text_model()
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.embedded
def test_the_real_model_loads_within_seconds():
    cache.ensure_base()
    cache.load(trained=False)  # imports and disk cache
    began = time.process_time()  # not wall time: the machine may be busy with something else
    model, processor = cache.load(trained=False)
    assert time.process_time() - began < 5
    assert model.config.text_config.num_hidden_layers == 30
    assert processor.image_token_id == 5
