"""Material to fit a repair on."""

from __future__ import annotations

import numpy as np
import torch

from care.data.example import Example
from care.defenses.material import Material
from care.models.vlm import VLM
from kit import tiny

WORDS = (
    "river",
    "stone",
    "cloud",
    "apple",
    "tiger",
    "violin",
    "hammer",
    "garden",
    "rocket",
    "sofa",
)


def asked(family: str, count: int, kind: str, pictures: bool, seed: int) -> list[Example]:
    return [
        Example(
            id=f"{family}-{i}",
            prompt=f"{family} {WORDS[i % 10]} {WORDS[(3 * i + 1) % 10]} {i}?",
            goal=f"{family} {i}",
            kind="malicious" if kind == "malicious" else "benign",
            suite=family,
            images=(tiny.picture(seed + i),) if pictures else (),
        )
        for i in range(count)
    ]


def material(pictured: int = 12, worded: int = 12) -> Material:
    def answered(examples: list[Example], answer: str) -> tuple[tuple[Example, str], ...]:
        return tuple((example, answer) for example in examples)

    attacks = [
        *asked("beside", pictured, "malicious", True, 0),
        *asked("template", worded, "malicious", False, 0),
    ]
    benign = [*asked("plain", 12, "benign", False, 0), *asked("drawn", 12, "benign", True, 100)]
    return Material(
        complied=answered(attacks, "To do it, you'll need"),
        refused=answered(asked("direct", 14, "malicious", False, 0), "I'm sorry, but no."),
        answered=answered(benign, "To do it, you'll need"),
        max_new_tokens=24,
    )


@torch.no_grad()
def last_hidden(vlm: VLM, example: Example, layer: int) -> np.ndarray:
    """The output (D,) of a layer but the last at the end of a prompt, as transformers gives it."""
    batch = vlm.batch(example)
    return (
        vlm.model(**batch.inputs, output_hidden_states=True).hidden_states[layer + 1][0, -1].numpy()
    )


def three_classes(width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations of attacks that worked, refused and benign requests, shifted from each other."""
    rng, axes = np.random.default_rng(seed), np.eye(width)
    return (
        rng.standard_normal((9, width)) + 3 * axes[0],
        rng.standard_normal((5, width)) - 3 * axes[1],
        rng.standard_normal((8, width)),
    )
