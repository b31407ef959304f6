"""Diagnosis: which sites and neurons carry an attack, and how far to trust that."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.diagnosis.causal_mediation import site_effects as site_effects
    from care.diagnosis.full import diagnose as diagnose
    from care.diagnosis.full_config import DiagnosisConfig as DiagnosisConfig
    from care.diagnosis.results import Diagnosis as Diagnosis

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "causal_mediation": ["site_effects"],
        "full": ["diagnose"],
        "full_config": ["DiagnosisConfig"],
        "results": ["Diagnosis"],
    },
)
