"""What activations are on average, and one row per example: the statistics of a clean pass.

`collect` streams over the examples once and keeps the mean per position class at each site and, for
each layer, one pooled vector per example; memory doesn't grow with tokens. `response_means` adds
answer tokens, which prompts don't have. `BenignDonors` keeps whole activations for resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from care.data.example import Example
from care.errors import UsageError
from care.models.hooks import read
from care.models.sites import N_CLASSES, Role, Site, position_classes
from care.models.vlm import VLM

Pooling = Literal["text", "last"]
Item = TypeVar("Item")

_MAX_DONORS = 16


class RoleMeans:
    """Running means per class of `care.models.sites.position_classes` at any number of
    sites."""

    def __init__(self) -> None:
        self._sums: dict[Site, Tensor] = {}
        self._counts: dict[Site, Tensor] = {}

    def add(self, site: Site, h: Tensor, roles: Tensor, only: Tensor | None = None) -> None:
        """Count activations h (B, T, D) at positions with these roles (B, T), `only` some (B, T)
        of them where that is said."""
        flat, rows = position_classes(roles).flatten().to(h.device), h.detach().flatten(0, 1)
        if only is not None:
            flat, rows = flat[only.flatten()], rows[only.flatten()]
        sums = torch.zeros(N_CLASSES, h.shape[-1], device=h.device)
        sums.index_add_(0, flat, rows.float())
        counts = torch.bincount(flat, minlength=N_CLASSES)
        self._accumulate(site, sums.cpu().double(), counts.cpu().double())

    def merge(self, other: RoleMeans) -> None:
        """Count everything that `other` has counted."""
        for site, sums in other._sums.items():
            self._accumulate(site, sums, other._counts[site])

    def table(self) -> dict[Site, Tensor]:
        """Mean at each site per position class (5, D), float32; rows 0 to 3 are those of `Role`.

        A class that was never seen gets the mean of all tokens; the text row leaves out decisions.
        """
        table = {}
        for site, sums in self._sums.items():
            counts = self._counts[site]
            overall = sums[Role.TEXT :].sum(0) / counts[Role.TEXT :].sum().clamp_min(1)
            means = sums / counts[:, None].clamp_min(1)
            table[site] = torch.where(counts[:, None] > 0, means, overall).float()
        return table

    def _accumulate(self, site: Site, sums: Tensor, counts: Tensor) -> None:
        if site in self._sums:
            sums, counts = self._sums[site] + sums, self._counts[site] + counts
        self._sums[site], self._counts[site] = sums, counts


class Collected(NamedTuple):
    """Statistics of N prompts."""

    means: dict[Site, Tensor]
    """Mean per position class (5, D) at every site that was asked for; see `RoleMeans.table`."""
    pooled: Tensor
    """One row per layer and example (L, N, D), float32."""


def collect(
    vlm: VLM,
    examples: Sequence[Example],
    sites: Sequence[Site],
    pooling: Pooling = "text",
    batch_size: int = 16,
) -> Collected:
    """Means per position class at `sites`, and `layer_out` of every layer pooled over each prompt.

    `pooling` takes the mean over the text tokens ("text") or the last token ("last").
    """
    total = RoleMeans()
    layers = vlm.anatomy.sites("layer_out")

    def work(chunk: list[int]) -> list[Tensor]:
        means = RoleMeans()
        pooled: dict[Site, Tensor] = {}

        def see(site: Site, h: Tensor, roles: Tensor) -> None:
            if site in sites:
                means.add(site, h, roles)
            if site.kind == "layer_out":
                pooled[site] = _pool(h, roles, pooling)

        batch = vlm.batch([examples[index] for index in chunk])
        with read(vlm, list(dict.fromkeys([*sites, *layers])), sink=see):
            vlm.forward(batch, logits_to_keep=1)
        total.merge(means)
        return list(torch.stack([pooled[site] for site in layers], dim=1))

    rows = vlm.in_batches(list(examples), batch_size, work)
    return Collected(total.table(), torch.stack(rows, dim=1))


def response_means(
    vlm: VLM,
    examples: Sequence[Example],
    responses: Sequence[str],
    sites: Sequence[Site],
    batch_size: int = 16,
) -> dict[Site, Tensor]:
    """Mean activation (D,) over the tokens of the model's own answers, at each site.

    Empty if no answer has any tokens.
    """
    answered = [
        (example, response)
        for example, response in zip(examples, responses, strict=True)
        if response.strip()
    ]
    if not answered:
        return {}
    total = RoleMeans()

    def work(chunk: list[int]) -> list[None]:
        batch = vlm.batch(
            [answered[index][0] for index in chunk], [answered[index][1] for index in chunk]
        )
        means = RoleMeans()
        with read(vlm, sites, sink=means.add):
            vlm.forward(batch, logits_to_keep=1)
        total.merge(means)
        return [None] * len(chunk)

    vlm.in_batches([example for example, _ in answered], batch_size, work)
    return {site: table[Role.RESPONSE] for site, table in total.table().items()}


class BenignDonors:
    """Activations of benign prompts, kept on the CPU, to be put in the place of others.

    Every example gets a benign prompt other than itself, one with images if it has images itself
    (if there is none, its image positions stay as they are); which one depends on its index only.
    """

    def __init__(
        self, vlm: VLM, attacks: Sequence[Example], benign: Sequence[Example], sites: Sequence[Site]
    ) -> None:
        donors = spread(benign, _MAX_DONORS)
        if len(donors) < 2:
            raise UsageError("Resampling needs at least 2 benign examples as donors.")
        self._chosen = _assigned([*attacks, *benign], donors)
        self._kept: dict[Site, tuple[Tensor, Tensor]] = {}
        with read(vlm, sites, sink=self._keep):
            vlm.forward(vlm.batch(donors), logits_to_keep=1)

    def __call__(self, site: Site, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Donor activations (n, T, D) and roles (n, T) for attacks + benign [indices]."""
        rows = [self._chosen[index] for index in indices]
        h, roles = self._kept[site]
        return h[rows], roles[rows]

    def _keep(self, site: Site, h: Tensor, roles: Tensor) -> None:
        self._kept[site] = (h.detach().cpu(), roles.cpu())


def goals_of(examples: Sequence[Example]) -> list[str]:
    """What a bootstrap resamples (N,): the goal; an example without one stands for itself."""
    return [example.goal or f"{example.suite}/{example.id}" for example in examples]


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _assigned(examples: Sequence[Example], donors: Sequence[Example]) -> list[int]:
    """Index of a donor for each example: another one, with images if the example has some."""
    chosen = []
    for index, example in enumerate(examples):
        others = [row for row, donor in enumerate(donors) if donor is not example]
        alike = [row for row in others if bool(donors[row].images) == bool(example.images)]
        pool = alike or others
        chosen.append(pool[index % len(pool)])
    return chosen


def _pool(h: Tensor, roles: Tensor, pooling: Pooling) -> Tensor:
    """One row per example (B, D) on the CPU, from h (B, T, D); batches are left-padded."""
    h = h.detach().float()
    if pooling == "last":
        return h[:, -1].cpu()
    mask = (roles == Role.TEXT)[..., None].to(h)
    return ((h * mask).sum(1) / mask.sum(1)).cpu()
