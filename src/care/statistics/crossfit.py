"""Cross-fitting by group: rows are scored by what was fitted without their group.

A row is an activation of one request, its group the goal that is asked for (or a picture that
serves several goals): what was fitted on another request for the same goal has as good as seen it.
Of k folds each holds the same groups in every family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class FamilyRows:
    """Activations of one family."""

    x: Rows
    """(N, D)."""
    groups: Sequence[str]
    """What must not be split between folds, for each row: a goal, or a shared picture."""

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
