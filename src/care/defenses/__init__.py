"""Defenses: anything that is put on a model and taken off again; the repair is one."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.defenses.base import Defense as Defense
    from care.defenses.base import register as register
    from care.defenses.loading import load_defense as load_defense
    from care.defenses.repair.presets import RepairConfig as RepairConfig
    from care.defenses.repair.repair import Repair as Repair

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Defense", "register"],
        "loading": ["load_defense"],
        "repair.presets": ["RepairConfig"],
        "repair.repair": ["Repair"],
    },
)
