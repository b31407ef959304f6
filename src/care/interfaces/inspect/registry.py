"""What Inspect finds of `care`: the module that the entry point in pyproject.toml names.

    --model care/NAME     a model from the Hub or a folder, and care/embedded   (inspect_provider)
    care/suite            any suite of examples as a task                       (inspect_tasks)
    care/attack_success, care/answered, care/correct      the judges as scorers (inspect_scorers)

Inspect imports this at every start, whatever is evaluated, so nothing here imports torch.
"""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi  # pyright: ignore[reportMissingImports]

from care.interfaces.inspect.scorers import answered, attack_success, correct
from care.interfaces.inspect.tasks import suite

__all__ = ["answered", "attack_success", "care", "correct", "suite"]


@modelapi(name="care")
def care() -> Any:
    """The class behind models called care/…, imported when one is asked for."""
    from care.interfaces.inspect.provider import CareAPI

    return CareAPI
