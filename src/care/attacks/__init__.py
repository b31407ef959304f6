"""Attacks that are made rather than collected, to measure defenses with.

Images optimised against a model (`pgd`), also through a defense (`through`) and as rows of a table
(`transfer`); requests drawn into pictures (`typography`); text templates (`templates`) and suffixes
by nanoGCG (`gcg`). Settings of published image attacks are in `presets`.
"""

from care.attacks.pgd import (
    AttackResult,
    corpus_requests,
    image_for_each,
    image_loss,
    universal_image,
)
from care.attacks.presets import PRESETS, PUBLISHED, PGDConfig, Preset, preset
from care.attacks.through import Through

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "AttackResult",
    "PGDConfig",
    "Preset",
    "Through",
    "corpus_requests",
    "image_for_each",
    "image_loss",
    "preset",
    "universal_image",
]
