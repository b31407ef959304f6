"""The embedded model on disk and in memory: assembled once, then loaded in seconds.

The cache holds the assembled but untrained model, about 0.3 GB; the trained weights that ship
with the package are folded in at every load, which takes a fraction of a second. The untouched
text model comes from the same folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from care.errors import ArtefactError, ModelError, StorageError, UsageError
from care.models.embedded.fetch import TEXT, TOWER, fetch
from care.models.weights import load_whole, loading
from care.runs.files import storage_errors

CACHE_VARIABLE = "CARE_CACHE"
"""Environment variable that names the folder to cache in."""

WEIGHTS = Path(__file__).with_name("weights.safetensors")
"""Trained weights that ship with the package."""

RECIPE = "1"
"""Counts up with every change of the assembled files, so that an older cache isn't reused."""

_UNFINISHED = ".assembling-"
_STALE_SECONDS = 6 * 3600


def base_folder(cache: Path | None = None) -> Path:
    """Where the assembled model lies or will lie; its name holds wheels and recipe.

    `cache` defaults to $CARE_CACHE, then ~/.cache/care.
    """
    if cache is None:
        cache = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/care").expanduser()
    version = hashlib.sha256(f"{RECIPE} {TEXT.sha256} {TOWER.sha256}".encode()).hexdigest()
    return cache / f"embedded-{version[:12]}"


def ensure_base(cache: Path | None = None, progress: bool = True) -> Path:
    """The folder of the assembled, untrained model, made if it isn't there.

    Work happens in a sibling folder that is moved into place when it is whole: a kill leaves the
    cache as it was, and of two processes at work at once one wins and both go on with its result.

    Raises:
        DownloadError: the parts can't be fetched.
        StorageError: the cache can't be written.
    """
    target = base_folder(cache)
    if target.is_dir():
        return target
    with storage_errors(f"write the cache {target.parent}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    try:
        text, tower = fetch((TEXT, TOWER), work, progress)
        _assemble(text, tower, work / "base", progress)
        _publish(work / "base", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _assemble(text: Path, tower: Path, out: Path, progress: bool) -> None:
    from safetensors import SafetensorError

    from care.models.embedded.assemble import assemble_base

    began = time.monotonic()
    if progress:
        print("Assembling the embedded model, once", file=sys.stderr, flush=True)
    try:
        with storage_errors(f"write {out}"):
            assemble_base(text, tower, out, progress=progress)
    except SafetensorError as error:
        raise StorageError(
            f"Could not write {out} ({error}); free space or correct the permissions."
        ) from error
    if progress:
        seconds = time.monotonic() - began
        print(f"Assembled the embedded model in {seconds:.0f} s", file=sys.stderr, flush=True)


def _publish(made: Path, target: Path) -> None:
    """Move a whole folder into place; another process may have been first, with the same."""
    try:
        made.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise StorageError(
                f"Could not move the assembled model to {target} ({error.strerror}); "
                "correct the permissions of the cache."
            ) from error


def _sweep(cache: Path) -> None:
    """Remove what killed processes left, hours ago."""
    for folder in cache.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def resolve_dtype(dtype: Any) -> Any:
    """A torch dtype from a dtype, its name, or "auto".

    "auto" is bfloat16 where the hardware computes in it and float32 on older processors, which
    merely emulate it. Raises UsageError for anything else.
    """
    import torch

    if dtype == "auto":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = torch.cuda.is_available() or any(
            getattr(torch.cpu, check, lambda: False)() for check in checks
        )
        return torch.bfloat16 if fast else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(
            "dtype must be 'auto' or a floating-point torch dtype such as 'bfloat16', "
            f"not {dtype!r}."
        )
    return found


def load(
    dtype: Any = "auto", cache: Path | None = None, progress: bool = True, trained: bool = True
) -> tuple[Any, Any]:
    """The embedded model (LlavaForConditionalGeneration, on the CPU) and its processor.

    Args:
        dtype: see `resolve_dtype`.
        cache: folder to cache in, see `base_folder`.
        progress: report downloading and assembling on standard error.
        trained: fold in the trained weights; without them the projector is random.

    Raises:
        DownloadError, StorageError: see `ensure_base`.
        ArtefactError: the trained weights are missing or damaged.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base, dtype = ensure_base(cache, progress), resolve_dtype(dtype)
    with _quiet(), _readable(base):
        loader = AutoModelForImageTextToText
        model = load_whole(loader, base, "it", dtype=dtype, local_files_only=True)
        processor = AutoProcessor.from_pretrained(base, local_files_only=True)
    if trained:
        apply_trained(model, WEIGHTS)
    return model.eval(), processor


def apply_trained(model: Any, path: Path) -> None:
    """Fold the trained weights in `path` into an untrained model, in place.

    Raises ArtefactError when the file is missing, damaged, or for another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from care.models.embedded.adapter import merge_adapter

    if not path.is_file():
        raise ArtefactError(
            f"The trained weights {path} are missing; reinstall care-vlm or run "
            "`python -m recipes.embedded_model train` in a checkout."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ArtefactError(
            f"The trained weights {path} are damaged ({error}); reinstall care-vlm."
        ) from error
    merge_adapter(model, tensors)


def base_text_model(
    dtype: Any = "auto", cache: Path | None = None, progress: bool = True
) -> tuple[Any, Any]:
    """The untouched SmolLM2 (LlamaForCausalLM, on the CPU) and its tokenizer.

    Its parameters come from the folder of the embedded model, before any training. Raises as
    `load` does.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer, LlamaForCausalLM, LlavaConfig

    base, dtype = ensure_base(cache, progress), resolve_dtype(dtype)
    prefix = "language_model."
    with _quiet(), _readable(base):
        with safe_open(base / "model.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            state = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        config: Any = LlavaConfig.from_pretrained(base, local_files_only=True).text_config
        options = {"config": config, "state_dict": state, "dtype": dtype}
        model = load_whole(LlamaForCausalLM, None, "it", **options)
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    return model.eval(), tokenizer


@contextmanager
def _readable(base: Path) -> Iterator[None]:
    """Turn the errors of a damaged cache into one sentence."""
    try:
        with loading("it"):
            yield
    except ModelError as error:
        raise ArtefactError(
            f"The cached model {base} can't be read ({str(error).rstrip('.')}); delete the folder, "
            "it is assembled again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar for every load, which is over in a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
