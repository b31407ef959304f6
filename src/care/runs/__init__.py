"""Runs: folders that survive a kill and are gone on with: rows, manifest, stages, progress."""

from typing import TYPE_CHECKING

from care._lazy import attach

if TYPE_CHECKING:
    from care.runs.files import write_whole as write_whole
    from care.runs.progress import Progress as Progress
    from care.runs.rows import Rows as Rows
    from care.runs.run import Run as Run

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "run": ["Run"],
        "rows": ["Rows"],
        "files": ["write_whole"],
        "progress": ["Progress"],
    },
)
