"""Every defense of the package by name, and where its class is.

To add a defense: a class in a module of its own, and a line here. A class of one's own is known
once its module is imported (`care.defenses.base.register`).
"""

from __future__ import annotations

from importlib import import_module

from care.defenses.base import Defense, registered

DEFENSES: dict[str, str] = {
    "repair": "care.defenses.repair.repair:Repair",
    "alphasteer": "care.defenses.rivals.alphasteer:AlphaSteer",
    "astra": "care.defenses.rivals.astra:Astra",
    "autosteer": "care.defenses.rivals.autosteer:AutoSteer",
    "cast": "care.defenses.rivals.cast:Cast",
    "cmrm": "care.defenses.rivals.cmrm:Cmrm",
    "cpca": "care.defenses.rivals.cpca:ContrastivePca",
    "difference-of-means": "care.defenses.rivals.difference_of_means:DifferenceOfMeans",
    "iti": "care.defenses.rivals.iti:HeadSteering",
    "leace": "care.defenses.rivals.leace:Leace",
    "refusal-direction": "care.defenses.rivals.refusal_direction:RefusalDirection",
    "safesteer": "care.defenses.rivals.safesteer:SafeSteer",
    "shiftdc": "care.defenses.rivals.shiftdc:ShiftDC",
    "spo-vlm": "care.defenses.rivals.spo_vlm:SpoVlm",
    "vlm-guard": "care.defenses.rivals.vlm_guard:VlmGuard",
    "neurons": "care.defenses.neuron_suppression:NeuronSuppression",
}
"""Where each defense is; imported when it is asked for, since most runs need one or two."""


def names() -> list[str]:
    """The names of all defenses: those of the package and those that are registered."""
    return sorted({*DEFENSES, *registered()})


def kind_of(name: str) -> type[Defense] | None:
    """The class of the defense `name`; None for an unknown name."""
    if name in DEFENSES:
        module, _, kind = DEFENSES[name].partition(":")
        return getattr(import_module(module), kind)
    return registered().get(name)
