"""Attacks: pictures optimised against a model or through a defense, and attacks in variants."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.attacks.adaptive import Through as Through
    from care.attacks.config import AttackConfig as AttackConfig
    from care.attacks.gcg import SuffixConfig as SuffixConfig
    from care.attacks.openings import with_opening as with_opening
    from care.attacks.pgd import AttackResult as AttackResult
    from care.attacks.pgd import corpus_requests as corpus_requests
    from care.attacks.pgd import image_loss as image_loss
    from care.attacks.pgd import universal_image as universal_image
    from care.attacks.presets import PRESETS as PRESETS
    from care.attacks.presets import PUBLISHED as PUBLISHED
    from care.attacks.presets import PGDConfig as PGDConfig
    from care.attacks.presets import PublishedAttack as PublishedAttack
    from care.attacks.presets import preset as preset
    from care.attacks.suffix import FoundSuffix as FoundSuffix
    from care.attacks.suffix import search_suffix as search_suffix
    from care.attacks.variant_attacks import VARIANT_ATTACKS as VARIANT_ATTACKS
    from care.attacks.variant_attacks import variant_attack as variant_attack
    from care.attacks.variants import FixedAttack as FixedAttack
    from care.attacks.variants import SearchedAttack as SearchedAttack
    from care.attacks.variants import VariantAttack as VariantAttack

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
        "openings": ["with_opening"],
        "suffix": ["FoundSuffix", "search_suffix"],
        "gcg": ["SuffixConfig"],
        "variants": ["FixedAttack", "SearchedAttack", "VariantAttack"],
        "variant_attacks": ["VARIANT_ATTACKS", "variant_attack"],
    },
)
