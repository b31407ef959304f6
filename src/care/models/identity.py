"""Which weights a run was made with: what its manifest says of the model, so that another shows.

    a folder           SHA-256 of its files that decide the answers: configuration, weights,
                       tokenizer, processor, chat template, code
    a name on the Hub  the commit that was loaded
    neither            SHA-256 of the configuration and of every parameter in memory

A path alone says nothing: what lies there can be trained anew, or replaced, between two attempts.
A repair states `model_facts`, by which another model than the one it was fitted on is told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch

from care.errors import ModelError
from care.models.vlm import VLM
from care.runs.reading import file_digest
from care.runs.run import Run

_WEIGHTS = ("*.safetensors",)
_OLD_WEIGHTS = ("*.bin", "*.pt", "*.pth")
"""Read by transformers only where there are none of these:"""
_LOADED_FIRST = ("model.safetensors", "model.safetensors.index.json")

FACTS = (
    "config.json", "generation_config.json", "adapter_config.json", "*.index.json",
    "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.tiktoken", "tekken.json", "*processor_config.json", "chat_template*", "*.jinja", "*.py",
)  # fmt: skip
"""Files beside the weights that decide what a model answers."""

_VOLATILE = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
"""Facts of a configuration that depend on how and by what the model was loaded."""

_READERS = 4
"""Files read at once: a disk gives more than one thread can hash."""


def model_facts(vlm: VLM) -> dict[str, Any]:
    """What identifies the model a repair belongs to."""
    config = stable(vlm.model.config.to_dict())
    template = getattr(vlm.processor, "chat_template", None) or ""
    return {
        "name": vlm.name,
        "revision": vlm.revision,
        "class": type(vlm.model).__name__,
        "layers": vlm.anatomy.n_layers,
        "width": vlm.anatomy.width,
        "config_sha256": _sha256(json.dumps(config, sort_keys=True, default=str)),
        "processor": type(vlm.processor).__name__,
        "chat_template_sha256": _sha256(str(template)),
    }


def stable(config: Any) -> Any:
    """A configuration, nested ones too, without what depends on how the model was loaded."""
    if not isinstance(config, dict):
        return config
    return {key: stable(value) for key, value in config.items() if key not in _VOLATILE}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_pinned(run: Run, source: str | None, load: Callable[[], VLM]) -> VLM:
    """The model that `load` gives, which a run is held to from its first attempt on.

    `source` is its name or folder; None for the embedded model. Raises UsageError when the run was
    made with another model, before this one is loaded if it lies in a folder.
    """
    if source is not None and Path(source).is_dir():
        run.pin("model", model_identity(source))
        return load()
    vlm = load()
    run.pin("model", model_identity(source, vlm))
    return vlm


def model_identity(source: str | None, vlm: VLM | None = None) -> dict[str, Any]:
    """{of, digest} of a model: `of` says whether of files, a commit, or parameters in memory.

    `source` is its name or folder; `vlm` is needed unless that is a folder.
    """
    if source is not None and Path(source).is_dir():
        return {"of": "files", "digest": folder_digest(Path(source))}
    commit = None if source is None else _commit(source, vlm)
    if commit is not None:
        return {"of": "commit", "digest": commit}
    return {"of": "parameters", "digest": parameters_digest(getattr(vlm, "model", None))}


def folder_digest(folder: Path) -> str:
    """SHA-256 of a model's files; ModelError for one that can't be read."""
    files = _files(folder)
    digest = partial(file_digest, what="file of the model", error=ModelError)
    with ThreadPoolExecutor(_READERS) as pool:
        digests = list(pool.map(digest, files))
    names = (_inside(file, folder).as_posix() for file in files)
    lines = [f"{name} {digest}" for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parameters_digest(model: Any) -> str | None:
    """SHA-256 of a configuration and of all parameters and buffers; None if they aren't at hand."""
    if not isinstance(model, torch.nn.Module):
        return None
    config = getattr(model, "config", None)
    facts = stable(config.to_dict()) if config is not None else {}
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:  # offloaded: it isn't in memory
            return None
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        hasher.update(flat.cpu().numpy())
    return hasher.hexdigest()


def _files(folder: Path) -> list[Path]:
    """The files that decide what a model answers, in subfolders too: an index may name any."""
    whole = any((folder / name).is_file() for name in _LOADED_FIRST)
    wanted = FACTS + _WEIGHTS + (() if whole else _OLD_WEIGHTS)
    found = sorted(path for path in folder.rglob("*") if _matches(path.name, wanted))
    hidden = (any(part.startswith(".") for part in _inside(path, folder).parts) for path in found)
    return [path for path, out in zip(found, hidden, strict=True) if not out and path.is_file()]


def _inside(path: Path, folder: Path) -> Path:
    return path.relative_to(folder)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _commit(source: str, vlm: VLM | None) -> str | None:
    """The commit of the Hub's snapshot that `source` was loaded from, told by the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            source, "config.json", revision=getattr(vlm, "revision", None) or "main"
        )
    except HFValidationError:  # no name that the Hub could have
        return None
    return Path(found).parent.name if isinstance(found, str) else None
