"""Defenses: anything that can be applied to a VLM and taken off again.

A repair is one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from care.models.vlm import VLM


@runtime_checkable
class Defense(Protocol):
    """What `evaluate` compares.

    A defense may have an attribute `late`: True promises that it changes nothing before the last
    position of a prompt, so that `evaluate` reads the prompts of a batch once, before it is put
    on, and shares that between defenses. Without it every prompt is read under the defense.
    """

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    def applied(self, vlm: VLM) -> AbstractContextManager[Any]:
        """A context in which `vlm` is defended."""
        ...
