"""Evaluation: (model × defenses × suites) to judged rows, tables and comparisons."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.evaluation.config import EvaluationConfig as EvaluationConfig
    from care.evaluation.job import rejudge_run as rejudge_run
    from care.evaluation.results import Results as Results
    from care.evaluation.runner import evaluate as evaluate

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "config": ["EvaluationConfig"],
        "job": ["rejudge_run"],
        "results": ["Results"],
        "runner": ["evaluate"],
    },
)
