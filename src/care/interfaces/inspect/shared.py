"""What the modules for Inspect share: that it's there, how errors are told, names in its registry.

Nothing here imports torch, and Inspect itself is imported only when a function is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from care.errors import CareError, MissingDependencyError

INSTALL = "pip install 'care-vlm[inspect]'"
"""What installs Inspect in a version that this package is tested with."""


def require_inspect() -> None:
    """MissingDependencyError with the command to run, unless Inspect can be imported."""
    try:
        import inspect_ai  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"Logs of Inspect need inspect-ai, which can't be imported ({error}); run: {INSTALL}"
        ) from error


@contextmanager
def one_sentence() -> Iterator[None]:
    """Errors that `care` foresees become those that Inspect prints without a traceback."""
    try:
        yield
    except CareError as error:
        from inspect_ai._util.error import (  # pyright: ignore[reportMissingImports]
            PrerequisiteError,
        )
        from rich.markup import escape

        # Inspect reads the message as markup: 'care-vlm[inspect]' would lose its brackets.
        raise PrerequisiteError(escape(f"Error: {error}")) from error


def qualified(name: str) -> str:
    """The name to register under, so that it is always found as care/NAME.

    Inspect puts the package's name before it by itself, but not in an editable install: it looks
    for an installed distribution called `care`, and ours is called care-vlm.
    """
    from inspect_ai._util.registry import registry_name  # pyright: ignore[reportMissingImports]

    return name if registry_name(qualified, name) != name else f"care/{name}"
