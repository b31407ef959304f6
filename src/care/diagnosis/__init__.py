"""Diagnosis: which sites and neurons carry an attack, and how far to trust that."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.diagnosis.causal_mediation import site_effects as site_effects
    from care.diagnosis.site_results import Diagnosis as Diagnosis
    from care.diagnosis.site_results import DiagnosisConfig as DiagnosisConfig
    from care.diagnosis.site_scan import diagnose as diagnose

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "site_scan": ["diagnose"],
        "site_results": ["Diagnosis", "DiagnosisConfig"],
        "causal_mediation": ["site_effects"],
    },
)
