"""Finished batches of a stage, kept in the run's folder, so that a kill costs one batch at most.

    batches/STAGE/DIGEST.safetensors    what `work` gave for one batch

A batch is known by the digests of what is asked and by everything else that decides the result,
both of which the caller states; under other settings, or with a repair that was fitted to other
numbers, it is asked again. Files that can't be read are, too. When a stage is done its batches are
removed: what it found is on disk. Not here: what a batch is (`VLM.in_batches`), stages (`run`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from care.runs.files import config_digest, storage_errors, write_whole
from care.runs.run import Run

Result = TypeVar("Result")
Work = Callable[[list[int]], list[Result]]

FOLDER = "batches"
"""Name of the folder in that of a run."""


@dataclass(frozen=True)
class KeptBatches:
    """The finished batches of one stage of a run."""

    run: Run
    """The run whose folder they are kept in."""
    stage: str
    """Name of the stage."""

    def over(
        self,
        work: Work[Result],
        asked: Sequence[str],
        facts: Mapping[str, Any],
        pack: Callable[[list[Result]], dict[str, np.ndarray]],
        unpack: Callable[[dict[str, np.ndarray]], list[Result]],
    ) -> Work[Result]:
        """`work` on places in `asked`, which isn't asked again for a batch that is kept.

        `asked` are digests of what is asked, such as examples; `facts` are what else decides the
        results, plain values; `pack` turns those of a batch into arrays by name, `unpack` back.
        """

        def remembered(chunk: list[int]) -> list[Result]:
            told = {"facts": facts, "asked": [asked[place] for place in chunk]}
            name = config_digest(told)[:40]
            path = self.run.inside(FOLDER, self.stage, f"{name}.safetensors")
            if path.is_file():
                try:
                    with storage_errors(f"read {path}"):
                        return unpack(load(path.read_bytes()))
                except (SafetensorError, KeyError, ValueError):
                    pass  # damaged: asked again, and written over
            done = work(chunk)
            self.run.check_there()
            write_whole(path, save({k: np.ascontiguousarray(v) for k, v in pack(done).items()}))
            return done

        return remembered

    def forget(self) -> None:
        """Remove the batches of the stage."""
        folder = self.run.inside(FOLDER, self.stage)
        if folder.is_dir() and not folder.is_symlink():
            with storage_errors(f"remove {folder}"):
                shutil.rmtree(folder)


def texts_to(texts: Sequence[str]) -> np.ndarray:
    """Texts as an array of bytes (one row of numbers), for `pack`."""
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def texts_from(array: np.ndarray) -> list[str]:
    """Inverse of `texts_to`."""
    return json.loads(array.tobytes())
