"""Every defense of the package by name, and where its class is.

To add a defense: a class in a module of its own, and a line here. A class of one's own is known
once its module is imported (`care.defenses.base.register`).
"""

from __future__ import annotations

from importlib import import_module

from care.defenses.base import Defense, registered

DEFENSES: dict[str, str] = {
    "repair": "care.defenses.repair.repair:Repair",
    "adashield-s": "care.defenses.rivals.adashield_s:AdaShieldS",
    "alphasteer": "care.defenses.rivals.alphasteer:AlphaSteer",
    "always-refuse": "care.defenses.rivals.always_refuse:AlwaysRefuse",
    "astra": "care.defenses.rivals.astra:Astra",
    "autosteer": "care.defenses.rivals.autosteer:AutoSteer",
    "cast": "care.defenses.rivals.cast:Cast",
    "circuit-breakers": "care.defenses.rivals.circuit_breakers:CircuitBreakers",
    "cmrm": "care.defenses.rivals.cmrm:Cmrm",
    "cpca": "care.defenses.rivals.cpca:ContrastivePca",
    "difference-of-means": "care.defenses.rivals.difference_of_means:DifferenceOfMeans",
    "ecso": "care.defenses.rivals.ecso:Ecso",
    "eta-lite": "care.defenses.rivals.eta_lite:EtaLite",
    "hiddendetect": "care.defenses.rivals.hiddendetect:HiddenDetect",
    "iti": "care.defenses.rivals.iti:HeadSteering",
    "jpeg": "care.defenses.rivals.purification:Jpeg",
    "leace": "care.defenses.rivals.leace:Leace",
    "neurons": "care.defenses.neuron_suppression:NeuronSuppression",
    "noise": "care.defenses.rivals.purification:Noise",
    "random-monitor": "care.defenses.rivals.random_monitor:RandomMonitor",
    "random-subspace": "care.defenses.rivals.random_subspace:RandomSubspace",
    "refusal-direction": "care.defenses.rivals.refusal_direction:RefusalDirection",
    "refusal-pairs": "care.defenses.rivals.refusal_pairs:RefusalPairs",
    "resize": "care.defenses.rivals.purification:Resize",
    "safesteer": "care.defenses.rivals.safesteer:SafeSteer",
    "self-reminder": "care.defenses.rivals.self_reminder:SelfReminder",
    "shiftdc": "care.defenses.rivals.shiftdc:ShiftDC",
    "smoothing": "care.defenses.rivals.smoothing:Smoothing",
    "spo-vlm": "care.defenses.rivals.spo_vlm:SpoVlm",
    "text-first": "care.defenses.rivals.text_first:TextFirst",
    "vlm-guard": "care.defenses.rivals.vlm_guard:VlmGuard",
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
