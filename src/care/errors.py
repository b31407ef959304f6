"""Every error that `care` raises on purpose.

One root, `CareError`; each subclass is also the standard exception that a caller would expect to
catch. A message is one sentence that says what happened, what was passed, and what to do. This
module imports nothing of the package, so that anything may import it.
"""

from collections.abc import Sequence
from typing import Any


class CareError(Exception):
    """Root of all errors raised on purpose; the command line prints it and exits with 2."""


class UsageError(CareError, ValueError):
    """An argument is wrong or arguments contradict each other."""


class ModelError(CareError, ValueError):
    """The model is unknown, isn't whole, or its anatomy can't be established."""


class NotFiniteError(ModelError):
    """The model computes NaN or infinity, mostly an overflow of float16.

    `answers` are those of the same call (`care.models.vlm.Answer`, in order), None where there is
    none.
    """

    def __init__(self, message: str, answers: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.answers = answers


class SiteError(CareError, LookupError):
    """A site, layer or token role doesn't exist in this model or matched nothing."""


class DataError(CareError, ValueError):
    """An example, image, suite or data file is empty, corrupt or malformed."""


class FitError(CareError, ValueError):
    """The activations can't be fitted: a class is missing, NaN, or the rank is too large."""


class ArtefactError(CareError, ValueError):
    """A saved artefact is damaged, tampered with, or made for another model."""


class StorageError(CareError, OSError):
    """Writing failed (full disk, no permission) or a run folder can't be used."""


class DownloadError(CareError, OSError):
    """Something that has to be fetched could not be (offline, wrong digest)."""


class MissingDependencyError(CareError, ImportError):
    """An optional package is needed; the message holds the install command."""
