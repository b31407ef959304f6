"""Diagnosis: which sites and neurons carry an attack, and how far to trust that."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.diagnosis.causal_mediation import site_effects as site_effects
    from care.diagnosis.faithfulness import faithfulness as faithfulness
    from care.diagnosis.full import DiagnosisConfig as DiagnosisConfig
    from care.diagnosis.site_scan import scan_sites as scan_sites

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "causal_mediation": ["site_effects"],
        "full": ["DiagnosisConfig"],
        "site_scan": ["scan_sites"],
    },
)
