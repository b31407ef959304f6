"""One report as HTML for a person and JSON for a program, written from the same tree."""

from care.report.check import validate
from care.report.files import load_report, write_diagnosis, write_report
from care.report.schema import SCHEMA
from care.report.summary import summarise

__all__ = [
    "SCHEMA",
    "load_report",
    "summarise",
    "validate",
    "write_diagnosis",
    "write_report",
]
