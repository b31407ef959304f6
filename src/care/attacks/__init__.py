"""Attacks that are made rather than collected: images optimised against a model."""

from care.attacks.pgd import PRESETS, AttackResult, PGDConfig, universal_image

__all__ = ["PRESETS", "AttackResult", "PGDConfig", "universal_image"]
