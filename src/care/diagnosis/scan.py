"""What a metric becomes with something removed, for many removals, at a fraction of the cost.

A `Removal` takes away one site, or a window of consecutive layers' sites of one kind: effects that
neighbouring layers can make up for show only in windows. Each batch is run once as it is, and each
removal from the layer on where it starts to matter (`care.models.replay`), so that a scan over L
layers takes half of L full passes for each component.

A scan can be resumed: `keep` gets a `ScanRow` of plain values for every removal of every batch,
and `done` takes the rows of an earlier run, whose passes are then left out. Write each row as one
line of JSON to a file that belongs to these examples and this configuration, in the order in which
they come, and read the file back at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from care.data.example import Example
from care.diagnosis.ablation import Ablation, ablate, first_needed
from care.diagnosis.measures import Measure, first_token, refusal_log_odds
from care.errors import FitError, UsageError
from care.models.replay import Replay
from care.models.sites import Scope, Site, SiteKind
from care.models.vlm import VLM

Donors = Callable[[Site, Sequence[int]], tuple[Tensor, Tensor]]
"""(site, indices of n examples) -> activations (n, T, D) to put in their place, roles (n, T)."""


@dataclass(frozen=True)
class Removal:
    """One site or several to take away at once, and how (see `care.diagnosis.ablation.ablate`)."""

    sites: tuple[Site, ...]
    """Where; a single `Site` is taken as a tuple of one."""

    how: Ablation
    """The kind of ablation."""

    scopes: tuple[Scope, ...] = ("all",)
    """Positions at which the sites are removed."""

    scale: float = 1.0
    """How much of the ablation is done, in times of the whole."""

    def __post_init__(self) -> None:
        if isinstance(self.sites, Site):
            object.__setattr__(self, "sites", (self.sites,))
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise UsageError(f"A removal needs different sites, got {_listed(self.sites)}.")

    def __str__(self) -> str:
        return f"{name_of(self.sites)} {self.how} {'+'.join(self.scopes)} {self.scale!r}"

    @property
    def site(self) -> Site:
        """The site in the middle; the only one unless this is a window."""
        return self.sites[len(self.sites) // 2]

    @property
    def start(self) -> int:
        """The first layer that has to be computed."""
        return first_needed(self.sites, self.how)


def windows(kind: SiteKind, n_layers: int, size: int) -> list[tuple[Site, ...]]:
    """All runs of `size` consecutive layers' sites of one kind, of a model of L layers.

    There are L − size + 1. Raises UsageError for an even size (there would be no middle) or one
    that doesn't fit.
    """
    if size < 1 or size % 2 == 0 or size > n_layers:
        raise UsageError(
            f"A window must be of an odd number of layers, at most {n_layers} of them, got {size}."
        )
    return [
        tuple(Site(layer, kind) for layer in range(first, first + size))
        for first in range(n_layers - size + 1)
    ]


def name_of(sites: Sequence[Site]) -> str:
    """`16.ffn_out` for one site, `15-17.ffn_out` for a window, others joined by `+`."""
    first, last = sites[0], sites[-1]
    run = tuple(Site(layer, first.kind) for layer in range(first.layer, last.layer + 1))
    if len(sites) > 1 and tuple(sites) == run:
        return f"{first.layer}-{last.layer}.{first.kind}"
    return _listed(sites)


def _listed(sites: Sequence[Site]) -> str:
    return "+".join(str(site) for site in sites) or "none"


class Scan(NamedTuple):
    """m(x) of N examples under S removals."""

    clean: np.ndarray
    """m of the untouched model (N,)."""
    effects: np.ndarray
    """m with the sites removed minus `clean` (S, N)."""
    relative_norm: np.ndarray
    """‖Δh‖/‖h‖ at the sites, mean over the changed positions of all examples (S,)."""
    residual_norm: np.ndarray
    """‖Δh‖/‖x‖, x the residual stream that enters the site's layer: the same denominator for all
    components of a layer (S,)."""
    changed: np.ndarray
    """For each removal and example: changed positions, and the sums over them of ‖Δh‖/‖h‖ and of
    ‖Δh‖/‖x‖ (S, N, 3)."""


class ScanRow(NamedTuple):
    """One removal on one batch of b examples, as plain values."""

    removal: str
    """`str` of the removal; empty for the untouched model."""
    examples: tuple[str, ...]
    """Place, suite and id of each example (b,)."""
    values: tuple[float, ...]
    """m of each (b,)."""
    changed: tuple[tuple[float, ...], ...]
    """For each example: changed positions, and the sums over them of ‖Δh‖/‖h‖ and ‖Δh‖/‖x‖."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self._asdict()

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ScanRow:
        """Inverse of `to_json`."""
        return cls(
            tree["removal"],
            tuple(tree["examples"]),
            tuple(tree["values"]),
            tuple(tuple(row) for row in tree["changed"]),
        )


def scan(
    vlm: VLM,
    examples: Sequence[Example],
    removals: Sequence[Removal],
    *,
    means: Mapping[Site, Tensor] | None = None,
    constants: Mapping[Site, Tensor] | None = None,
    donors: Donors | None = None,
    measure: Measure | None = None,
    batch_size: int = 16,
    max_cache_bytes: int | None = None,
    done: Iterable[ScanRow] = (),
    keep: Callable[[ScanRow], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Scan:
    """m of every example, as it is and under every removal.

    `means` are needed by `mean` removals, `constants` by `constant` ones, `donors` by `resample`
    and `paired` ones. `measure` is m, by default the refusal log-odds. Batches are full as far as
    the numbers of images allow; one that doesn't fit into memory is halved. `max_cache_bytes`
    bounds what is remembered of a batch (`care.models.replay.cache_bytes`). `advance` gets the
    number of newly finished (example, removal) pairs. For `done` and `keep` see above.

    Raises UsageError if `refusal_ids` is empty or a mean is missing, FitError for values that
    aren't finite.
    """
    measure = measure or first_token(refusal_log_odds(vlm))
    tables = {"mean": means, "constant": constants}
    scanner = _Scanner(vlm, list(examples), measure, max_cache_bytes, done, keep)

    def work(chunk: list[int]) -> list[tuple[tuple[float, ...], tuple[Any, ...]]]:
        scanner.forget()  # what a batch that turned out too large has left

        def removed(removal: Removal, runs: Runs) -> ScanRow:
            given = None
            if removal.how in ("resample", "paired") and donors is not None:
                given = {site: donors(site, chunk) for site in removal.sites}
            table = tables.get(removal.how)
            with ablate(
                vlm, removal.sites, removal.how, table, removal.scopes, given, removal.scale
            ) as stats:
                values = runs.values(removal.start)
            passed = [part.last.cpu() for part in stats.values() if part.last is not None]
            changed = sum(passed, start=torch.zeros(3, len(chunk), dtype=torch.float64)).T
            rows = tuple(map(tuple, changed.tolist()))
            return ScanRow(str(removal), scanner.names(chunk), values, rows)

        rows = [scanner.row(chunk, None, lambda runs: runs.row(scanner.names(chunk)))]
        for removal in removals:
            rows.append(scanner.row(chunk, removal, lambda runs, r=removal: removed(r, runs)))
            if advance is not None:
                advance(len(chunk))
        scanner.forget()
        values = zip(*(row.values for row in rows), strict=True)
        changes = zip(*(row.changed for row in rows), strict=True)
        return list(zip(values, changes, strict=True))

    found = vlm.in_batches(list(examples), batch_size, work)
    values = np.array([row for row, _ in found], dtype=np.float64).T
    _check_finite(values, removals, measure)
    changed = np.array([row[1:] for _, row in found], dtype=np.float64)
    changed = changed.reshape(len(found), len(removals), 3).transpose(1, 0, 2)
    relative, residual = mean_norms(changed)
    return Scan(values[0], values[1:] - values[0], relative, residual, changed)


def mean_norms(changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ‖Δh‖/‖h‖ and ‖Δh‖/‖x‖ (S,) over the changed positions of the examples in (S, N, 3)."""
    tokens, *norms = changed.sum(axis=1).T
    first, second = (
        np.divide(sums, tokens, out=np.zeros_like(sums), where=tokens > 0) for sums in norms
    )
    return first, second


class Runs:
    """One batch of examples that can be run again under what is removed now, for any measure.

    Attributes: `works`, whether replays suit the model, and `clean`, m of the batch as it is (B,).
    """

    def __init__(
        self,
        vlm: VLM,
        examples: Sequence[Example],
        measure: Measure,
        *,
        reuse: bool = True,
        check: bool = True,
        max_bytes: int | None = None,
    ) -> None:
        """Run the clean pass of every part of `measure`; they share `max_bytes` equally."""
        self.parts = measure.parts
        share = None if max_bytes is None else max_bytes // len(self.parts)
        self.replays: list[Replay] = []
        for part in self.parts:
            batch = part.batch(vlm, examples)
            options: dict[str, Any] = {"keep": part.keep(batch), "max_bytes": share, "check": check}
            self.replays.append(Replay(vlm, batch, reuse, **options))
            reuse = self.replays[-1].reuses
        self.works = all(replay.reuses for replay in self.replays)
        self.clean = self._sum([replay.clean_outputs for replay in self.replays])

    def values(self, start: int) -> tuple[float, ...]:
        """m (B,) under the edits that are in place now, which change nothing before `start`."""
        return self._sum([replay.outputs(start) for replay in self.replays])

    def row(self, names: tuple[str, ...]) -> ScanRow:
        """The row of the untouched model."""
        return ScanRow("", names, self.clean, ((0.0, 0.0, 0.0),) * len(names))

    def _sum(self, outputs: Sequence[Tensor]) -> tuple[float, ...]:
        total = sum(
            part.sign * part.read(replay.batch, logits).double()
            for part, replay, logits in zip(self.parts, self.replays, outputs, strict=True)
        )
        assert isinstance(total, Tensor)  # a measure has at least one part
        return tuple(total.tolist())


class _Scanner:
    """Rows of a scan, from earlier ones where there are any, and otherwise from the model."""

    def __init__(
        self,
        vlm: VLM,
        examples: list[Example],
        measure: Measure,
        max_bytes: int | None,
        done: Iterable[ScanRow],
        keep: Callable[[ScanRow], None] | None,
    ) -> None:
        self.vlm, self.examples, self.measure = vlm, examples, measure
        self.max_bytes, self.keep = max_bytes, keep
        self._done = {(row.removal, row.examples): row for row in done}
        self._runs: Runs | None = None
        self._reuse = True
        self._checked: set[bool] = set()

    def names(self, chunk: Sequence[int]) -> tuple[str, ...]:
        """What stands for each example in a row."""
        chosen = ((index, self.examples[index]) for index in chunk)
        return tuple(f"{index}:{example.suite}/{example.id}" for index, example in chosen)

    def row(
        self, chunk: Sequence[int], removal: Removal | None, make: Callable[[Runs], ScanRow]
    ) -> ScanRow:
        """The row of a removal (None: of the untouched model) on a batch."""
        key = ("" if removal is None else str(removal), self.names(chunk))
        if key not in self._done:
            self._done[key] = make(self._begun(chunk))
            if self.keep is not None:
                self.keep(self._done[key])
        return self._done[key]

    def forget(self) -> None:
        """Free what is remembered of the batch."""
        self._runs = None

    def _begun(self, chunk: Sequence[int]) -> Runs:
        if self._runs is None:
            batch = [self.examples[index] for index in chunk]
            pictured = any(example.images for example in batch)
            # Whether replays suit a model lies in its code: one batch of each kind tells.
            check = pictured not in self._checked
            options: dict[str, Any] = {"check": check, "max_bytes": self.max_bytes}
            self._runs = Runs(self.vlm, batch, self.measure, reuse=self._reuse, **options)
            self._checked.add(pictured)
            self._reuse = self._runs.works
        return self._runs


def _check_finite(values: np.ndarray, removals: Sequence[Removal], measure: Measure) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        what = "untouched" if bad[0] == 0 else f"without {name_of(removals[bad[0] - 1].sites)}"
        raise FitError(
            f"The {measure.name} of the model {what} aren't finite for "
            f"{int((~np.isfinite(values[bad[0]])).sum())} of {values.shape[1]} examples; run it in "
            "float32 or bfloat16."
        )
