"""What `care verify` says: checks of one defense on one model, and the page of their verdict.

A check has passed, has failed, or tells a figure that nobody asked to be held to a limit. The
verdict is that none has failed. Where the figures are made: `model_checks` (the model's own
numbers) and `probe` (answers that are judged).
"""

from __future__ import annotations

from dataclasses import dataclass

from care.typed import Misfit

SCHEMA = "care.verification/1"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What was looked at."""
    passed: bool | None
    """Whether it is as it should be; none: a figure without a limit."""
    figure: float | None
    """What was measured; none where nothing could be."""
    sentence: str
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All checks of one defense on one model."""

    schema: str = SCHEMA
    """Version of these fields."""
    model: str
    """Name of the model."""
    repair: str
    """Folder of the repair."""
    digest: str | None
    """SHA-256 of all that it does; none of a defense that can't tell."""
    passed: bool
    """Whether no check has failed."""
    checks: tuple[Check, ...]
    """What was looked at, in order."""

    def check(self) -> None:
        """Misfit unless the verdict is that of the checks."""
        if self.passed != verdict(self.checks):
            raise Misfit("passed", "isn't what the checks say")

    def page(self) -> str:
        """Everything on one page of Markdown."""
        head = [
            f"# {'Passed' if self.passed else 'Failed'}: {self.repair} on {self.model}",
            "",
            f"SHA-256 of the repair: {self.digest or 'none'}",
            "",
            "| check | | figure | |",
            "|---|---|---|---|",
        ]
        return "\n".join([*head, *map(_line, self.checks)]) + "\n"


def verdict(checks: tuple[Check, ...]) -> bool:
    """Whether no check has failed."""
    return all(check.passed is not False for check in checks)


def shown(check: Check) -> str:
    """What became of a check, in a word."""
    return {True: "passed", False: "FAILED", None: "told"}[check.passed]


def shown_figure(check: Check) -> str:
    """Its figure, short."""
    return "" if check.figure is None else f"{check.figure:.3g}"


def _line(check: Check) -> str:
    return f"| {check.name} | {shown(check)} | {shown_figure(check)} | {check.sentence} |"
