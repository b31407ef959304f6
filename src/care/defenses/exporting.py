"""A repair as files that others read: a merged checkpoint of transformers, an adapter of PEFT.

    merged   the whole model and its processor, with W' = W + B A and b' = b + s
             (`folded_weights`). Where biases are new, the configuration says so and all others that
             it brings are 0
    lora     A (r, inputs) and B (outputs, r) of each map at scale 1, the ranks filled up with zeros
             to the greatest; there is no place for a bias

A folder is there whole or not at all. Not here: what can be folded (`linear_parts`,
`folded_weights`), and what it costs to leave the rest out (`care.pipeline.export`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from care.defenses.export_facts import ExportFacts, FoldedSite, export_card
from care.defenses.folded_weights import Fold, bias_settings, expected, folded
from care.errors import UsageError
from care.models.vlm import VLM
from care.runs.files import storage_errors, to_json, write_whole
from care.typed import to_tree

FACTS, CARD = "care_export.json", "README.md"
"""What was exported, for programs and for readers."""


def write_merged(vlm: VLM, made: Sequence[Fold], folder: Path) -> None:
    """Write the model with what is folded into it, and its processor.

    UsageError for a centre where the model's class has no bias.
    """
    settings = bias_settings(vlm, made)
    model = vlm.model
    with folded(made), _set(model.config.get_text_config(), settings):
        state: dict[str, Tensor] = dict(model.state_dict())
        if settings:
            for name, tensor in expected(vlm, model.config).items():
                if name not in state:
                    state[name] = torch.zeros(tensor.shape, dtype=vlm.dtype)
        with storage_errors(f"write {folder}"):
            model.save_pretrained(folder, state_dict=state)
            vlm.processor.save_pretrained(folder)


def check_lora(made: Sequence[Fold]) -> None:
    """UsageError where an adapter would have to hold a bias."""
    if shifted := [fold.name for fold in made if fold.shifts]:
        raise UsageError(
            f"An adapter has no place for a centre, which the edit at {shifted[0]} has; leave it "
            "out with --drop centres, by which the loss is measured, or take --format merged."
        )


def write_lora(vlm: VLM, made: Sequence[Fold], folder: Path) -> None:
    """Write an adapter that PEFT loads; UsageError where it would have to hold a bias."""
    check_lora(made)
    rank = max(len(fold.down) for fold in made)
    tensors: dict[str, Tensor] = {}
    for fold in made:
        up, down = fold.up.float(), fold.down.float()
        down = torch.cat([down, down.new_zeros(rank - len(down), down.shape[1])])
        up = torch.cat([up, up.new_zeros(len(up), rank - up.shape[1])], dim=1)
        tensors[f"base_model.model.{fold.name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{fold.name}.lora_B.weight"] = up.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": vlm.name,
        "revision": vlm.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [fold.name for fold in made],
        "inference_mode": True,
    }
    write_whole(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    write_whole(folder / "adapter_config.json", to_json(config, indent=1) + "\n")


def folded_sites(made: Sequence[Fold]) -> tuple[FoldedSite, ...]:
    """What the card says of each linear map."""
    return tuple(FoldedSite(name=fold.name, rank=len(fold.down), bias=fold.shifts) for fold in made)


def write_export(vlm: VLM, made: Sequence[Fold], facts: ExportFacts, out: Path) -> Path:
    """Write the folder of an export with its facts and card; `out` must not hold anything."""
    write = write_merged if facts.format == "merged" else write_lora
    with _whole(out) as folder:
        write(vlm, made, folder)
        write_whole(folder / FACTS, to_json(to_tree(facts, "The export"), indent=1) + "\n")
        write_whole(folder / CARD, export_card(facts))
    return out


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` when all of it is written."""
    with storage_errors(f"write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{out.name[:64]}.", suffix=".part", dir=out.parent))
    try:
        yield work
        with storage_errors(f"write {out}"):
            work.chmod(0o755)
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _set(config: Any, settings: Mapping[str, bool]) -> Iterator[None]:
    before = {name: getattr(config, name) for name in settings}
    for name, value in settings.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
