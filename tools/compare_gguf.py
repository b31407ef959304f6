"""Is every text tensor of a merged checkpoint in a GGUF file, with the same numbers?

    python tools/compare_gguf.py MERGED FILE.gguf

For the text model of LLaMA's kind (LLaVA, Idefics 3, SmolVLM), as `convert_hf_to_gguf.py` of
llama.cpp writes it with `--outtype f32`, `f16` or `bf16`. Names are mapped by the package `gguf`;
rows of q and k are put into the order that llama.cpp has them in. The last line says how many
tensors agree and the greatest difference; exit code 1 where one is missing, has another shape or
differs by more than the file's type rounds. Eyes and projector, which llama.cpp keeps in another
file, aren't looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize
from safetensors import safe_open
from transformers import AutoConfig

ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Greatest relative difference that the type of a tensor makes."""

_TEXT = ("model.language_model.", "language_model.model.", "model.text_model.", "model.")
"""How the text model's tensors begin in a checkpoint."""


def text_tensors(merged: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The text model's tensors of a checkpoint, named as in one of LLaMA alone, in float32."""
    for path in sorted(merged.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            start = next(p for p in _TEXT if any(n.startswith(f"{p}layers.") for n in names))
            for name in names:
                head = name.removeprefix("language_model.")
                if name.startswith(start):
                    told = f"model.{name.removeprefix(start)}"
                elif head.startswith("lm_head."):
                    told = head
                else:
                    continue
                if told.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_")):
                    yield told, file.get_tensor(name).float().numpy()


def stored(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Type and numbers of every tensor of a GGUF file."""
    found = {}
    for tensor in GGUFReader(str(path)).tensors:
        kind = GGMLQuantizationType(tensor.tensor_type)
        found[tensor.name] = kind.name, dequantize(tensor.data, kind).astype(np.float32)
    return found


def as_llama_orders(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, or their biases, as llama.cpp has them: halves of each head interleaved."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def differences(merged: Path, path: Path) -> Iterator[tuple[str, str, float]]:
    """Of each tensor its name, what is wrong with it ("" if nothing is), and its difference."""
    config: Any = AutoConfig.from_pretrained(merged).get_text_config()
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    there = stored(path)
    for name, own in text_tensors(merged):
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if told is None or told not in there:
            # A bias of zeros is what a file without one has.
            yield name, "" if name.endswith(".bias") and not own.any() else "is missing", 0.0
            continue
        part = name.split(".")[-2]
        kind, other = there[told]
        own = as_llama_orders(own, heads[part]) if part in heads else own
        if own.shape != other.shape:
            yield name, f"is {other.shape} instead of {own.shape}", 0.0
            continue
        apart = np.abs(own - other)
        allowed = ROUNDING.get(kind)
        if allowed is None:
            yield name, f"is quantised ({kind}), which can't be compared", float(apart.max())
            continue
        wrong = bool((apart > allowed * np.abs(own) + 1e-7 * (allowed > 0)).any())
        yield name, "differs by more than its type rounds" if wrong else "", float(apart.max())


def main() -> int:
    parser = argparse.ArgumentParser(description="a merged checkpoint against a GGUF file")
    parser.add_argument("merged", type=Path, help="folder of the checkpoint")
    parser.add_argument("file", type=Path, help="what llama.cpp's converter made of it")
    asked = parser.parse_args()
    found = list(differences(asked.merged, asked.file))
    wrong = [(name, why) for name, why, _ in found if why]
    for name, why in wrong:
        print(f"{name} {why}")
    most = max((apart for _, _, apart in found), default=0.0)
    print(
        f"{len(found) - len(wrong)} of {len(found)} tensors agree; greatest difference {most:.3g}"
    )
    return int(bool(wrong) or not found)


if __name__ == "__main__":
    sys.exit(main())
