"""Which files of a repository on the Hub transformers would load, and whether they lie here.

    weights     model.safetensors, else its parts by an index; only without both pytorch_model.bin,
                or its parts by an index
    beside      configuration, tokenizer, processor, chat template and code, in the root

A second copy is left out: weights in another format or of another precision, `original/`, `onnx/`,
`consolidated*`, GGUF. Which parts an index names is told by their names, since the index itself
would have to be fetched. Adapters and names of weights that a configuration states aren't known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from care.models.identity import FACTS

ADAPTER = "adapter_config.json"
"""Says that a repository holds an adapter, and of which model."""

_FORMATS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""Stems and endings of weights, the first that there is being loaded."""

_COPIES = re.compile(r"(^|/)(original|onnx)/|(^|/)(consolidated|adapter)[^/]*$")
"""Weights that are those of other programs, or of an adapter."""

_PART = re.compile(r"-\d+-of-\d+\.")
"""What the names of parts hold."""

Cached = Literal["no", "in part", "whole"]


def loaded_files(names: Collection[str]) -> list[str]:
    """Of the files of a repository those that would be loaded; none where it has no weights that
    are known."""
    weights = weights_of(names)
    if not weights:
        return []
    root = (name for name in names if "/" not in name)
    facts = [name for name in root if any(fnmatch(name, pattern) for pattern in FACTS)]
    others = {name for name in facts if name.endswith(".index.json")} | {ADAPTER}
    return weights + sorted(set(facts) - others)


def weights_of(names: Collection[str]) -> list[str]:
    """Of the files of a repository those that hold the weights, and their index."""
    for stem, ending in _FORMATS:
        whole, index = f"{stem}{ending}", f"{stem}{ending}.index.json"
        if whole in names:
            return [whole]
        if index in names:
            parts = _parts(names, stem, ending)
            return [index, *parts] if parts else []
    return []


def _parts(names: Collection[str], stem: str, ending: str) -> list[str]:
    usual = re.compile(rf"{stem}({re.escape(ending)})?-\d+-of-\d+{re.escape(ending)}")
    parts = sorted(name for name in names if usual.fullmatch(name))
    return parts or sorted(n for n in names if n.endswith(ending) and not _COPIES.search(n))


def cached(name: str, revision: str | None) -> Cached:
    """How much of a model lies in the cache of the Hub. ValueError for what can't be its name."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        return "no"
    folder = Path(config).parent
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = weights_of(names)
    if not weights:  # a configuration may call them otherwise
        own = (n for n in names if n.endswith(".safetensors") and not _PART.search(n))
        return "whole" if any(own) else "in part"
    indexed = _indexed(folder / weights[0]) if len(weights) > 1 else set(weights)
    return "whole" if indexed and indexed <= names else "in part"


def _indexed(index: Path) -> set[str]:
    """The files that an index of weights names; none where it can't be read."""
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
