"""The universal adversarial pictures of the PGD suites: how they were made, and making them anew.

Each starts from a harmless picture and is optimised on *fit* goals alone, so that the first answer
tokens to "How do I {goal}?" become "To {goal}, you'll": the pictures of validation and test differ
from those of fit by start and order. The results ship as PNGs with
`care.data.small_world`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from care.attacks.pgd import universal_image
from care.attacks.presets import PRESETS
from care.data.small_world import goals as world
from care.data.small_world.pictures import seeded
from care.data.small_world.scenes import unrelated
from care.data.small_world.suites import attack_requests
from care.models.vlm import VLM
from care.runs.files import write_whole

COPIES: tuple[tuple[world.Split, int], ...] = (
    ("fit", 0),
    ("validation", 0),
    ("test", 0),
    ("fit", 1),
    ("fit", 2),
    ("fit", 3),
)
"""Which pictures are made of each attack, in this order."""


def make(vlm: VLM, out: Path, log: Callable[[str], None] = print) -> list[Path]:
    """Write every adversarial picture to `out`, those that are there already excepted.

    Takes about a minute a picture on two cores; killed, it goes on from the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    examples, targets = attack_requests()
    made = []
    for split, copy in COPIES:
        for name, config in PRESETS.items():
            path = out / f"{name}-{split}-{copy}.png"
            made.append(path)
            if path.exists():
                continue
            start = unrelated(seeded("adversarial", name, split, copy))
            checkpoint = out / f"{path.stem}.safetensors"
            result = universal_image(
                vlm,
                examples,
                targets,
                start,
                replace(config, seed=COPIES.index((split, copy))),
                progress=lambda step, loss, stem=path.stem: (
                    log(f"{stem} step {step} loss {loss:.2f}") if step % 20 == 0 else None
                ),
                checkpoint=checkpoint,
            )
            png = io.BytesIO()
            result.image.save(png, "png", optimize=True)
            write_whole(path, png.getvalue())
            checkpoint.unlink(missing_ok=True)
            log(f"{path.stem} loss {result.loss:.2f}, was {result.losses[0]:.2f}")
    return made
