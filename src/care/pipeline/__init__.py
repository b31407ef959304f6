"""The main job: attack, diagnose, fit, select, prove and report, as stages that survive a kill."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.pipeline.config import RepairJob as RepairJob
    from care.pipeline.workflow import diagnose as diagnose
    from care.pipeline.workflow import fit as fit
    from care.pipeline.workflow import repair as repair

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "workflow": ["diagnose", "fit", "repair"],
        "config": ["RepairJob"],
    },
)
