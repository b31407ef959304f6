"""A stage whose result is one JSON file: made once, read back when the run is resumed.

    NAME.json    what the stage NAME found; its digest is in the manifest

A stage is made anew where it didn't end, or where a file of its result isn't as it was written. The
batches that it kept on the way are removed when the result is on disk.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from care.runs.kept_batches import KeptBatches
from care.runs.run import Run


def stage_json(run: Run, name: str, make: Callable[[], Any], also: Sequence[str] = ()) -> Any:
    """What a stage found, made now or read back from NAME.json and the files in `also`.

    Where one of these isn't as it was written, the stage is made again.
    """
    path, kept = run.path / f"{name}.json", KeptBatches(run, name)
    if run.stage_done(name):
        damaged = [file for file in (path.name, *also) if not run.intact(file)]
        if not damaged:
            kept.forget()  # of an attempt that was killed just before it did
            return json.loads(path.read_bytes())
        warnings.warn(
            f"{damaged[0]} in {run.path} isn't as it was written, so the stage {name} is made "
            "again.",
            stacklevel=2,
        )
    with run.stage(name):
        run.write_json(path.name, make())
        run.sign(path.name)
    kept.forget()
    return json.loads(path.read_bytes())
