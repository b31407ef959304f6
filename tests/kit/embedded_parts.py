"""Tiny stand-ins for the parts of the embedded model, and a cache with what is assembled of them.

The GGUF and ONNX files are written here byte by byte from their specifications, so that the readers
aren't checked against themselves.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from care.models.embedded import assemble, cache, tower

WIDTH, FFN, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 2, 1
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"]


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


@pytest.fixture(scope="module")
def assembled(text_gguf, tower_onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("assembled") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tower, "N_PICTURES", 20)
        assemble.assemble_base(text_gguf[0], tower_onnx[0], out)
    return out


@pytest.fixture
def cached(assembled, tmp_path):
    cache.base_folder(tmp_path).symlink_to(assembled)
    return tmp_path
