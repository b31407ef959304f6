"""The report: one HTML and one JSON from results. It measures nothing and runs no model."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.report.files import load_report as load_report
    from care.report.files import write_diagnosis as write_diagnosis
    from care.report.files import write_report as write_report
    from care.report.schema import SCHEMA as SCHEMA
    from care.report.schema import Report as Report
    from care.report.schema import json_schema as json_schema
    from care.report.schema import validate as validate
    from care.report.targets import summarise as summarise

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "files": ["load_report", "write_diagnosis", "write_report"],
        "schema": ["SCHEMA", "Report", "json_schema", "validate"],
        "targets": ["summarise"],
    },
)
