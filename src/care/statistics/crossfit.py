"""Cross-fitting by group: rows are scored by what was fitted without their group.

A row is an activation of one request, its group the goal that is asked for (or a picture that
serves several goals): what was fitted on another request for the same goal has as good as seen it.
Of k folds each holds the same groups in every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.floating[Any]]


BLOCK = 1024
"""Rows that are taken at once where there are many."""


@dataclass(frozen=True, eq=False)
class FamilyRows:
    """Activations of one family; its rows may be some of those of an array in a file."""

    source: Rows
    """(M, D)."""
    groups: Sequence[str]
    """What must not be split between folds, for each row: a goal, or a shared picture."""
    places: NDArray[np.int64] | None = None
    """Which of the rows of `source` are its (N,); none: all of them."""
    function: Callable[[Rows], Rows] | None = None
    """What is taken of each row (N, D) in its place."""

    def __len__(self) -> int:
        return len(self.source if self.places is None else self.places)

    @property
    def width(self) -> int:
        """D, after `function`."""
        return self._of(slice(0, 1)).shape[1]

    @cached_property
    def x(self) -> Rows:
        """All rows (N, D) at once."""
        return self._of(slice(None))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """All rows, at most `size` at once, with the place of the first of them."""
        for start in range(0, len(self), size):
            yield start, self._of(slice(start, start + size)).astype(np.float64)

    def every(self, step: int) -> Rows:
        """Every `step`-th row."""
        return self._of(slice(None, None, step))

    def _of(self, part: slice) -> Rows:
        own = self.source[part] if self.places is None else self.source[self.places[part]]
        return own if self.function is None else self.function(own)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row (D,)."""
        return self.x.mean(axis=0, dtype=np.float64)

    def outside(self, fold: NDArray[np.bool_]) -> Rows:
        """The rows that aren't in a fold (N,) of bool."""
        return self.x[~fold]


def folds_of(classes: Sequence[FamilyRows], folds: int) -> list[NDArray[np.int64]]:
    """Fold (N,) of every row of each class: a group is in the same fold in all classes.

    A class whose rows would all be in one fold is cut by rows.
    """
    names = dict.fromkeys(group for rows in classes for group in rows.groups)
    place = {name: index % folds for index, name in enumerate(names)}
    found = [np.array([place[group] for group in rows.groups]) for rows in classes]
    return [own if len(set(own)) > 1 else np.arange(len(own)) % folds for own in found]
