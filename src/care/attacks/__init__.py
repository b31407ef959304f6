"""Attacks that are made: pictures optimised against a model or through a defense."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.attacks.adaptive import Through as Through
    from care.attacks.config import AttackConfig as AttackConfig
    from care.attacks.pgd import AttackResult as AttackResult
    from care.attacks.pgd import corpus_requests as corpus_requests
    from care.attacks.pgd import image_loss as image_loss
    from care.attacks.pgd import universal_image as universal_image
    from care.attacks.presets import PRESETS as PRESETS
    from care.attacks.presets import PUBLISHED as PUBLISHED
    from care.attacks.presets import PGDConfig as PGDConfig
    from care.attacks.presets import PublishedAttack as PublishedAttack
    from care.attacks.presets import preset as preset

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "pgd": [
            "AttackResult",
            "corpus_requests",
            "image_loss",
            "universal_image",
        ],
        "presets": ["PRESETS", "PUBLISHED", "PGDConfig", "PublishedAttack", "preset"],
        "adaptive": ["Through"],
        "config": ["AttackConfig"],
    },
)
