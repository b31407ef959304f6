"""What a neuron is compared with: the values that are put in the place of its own.

FFN neuron i of layer l has the value a_i,t = act(gate)·up that enters `down_proj` at position t
(site kind `ffn_neurons`); its output column w_i is what a unit of it adds to the residual stream.
Its effect is a comparison with another value a*_i,t,

    effect_i = E[ m(x | do(a_i,t := a*_i,t for t in scope)) − m(x) ],

and a `Counterfactual` says which prompts x, which positions, and which a*: the values of another
prompt at aligned positions (`between_pairs`), or the mean per position class of
`care.models.sites` (`against_means`). The neurons of an expert are compared where the router sends
a token to it: elsewhere they are 0, also as another prompt's values, and means are over such tokens
alone. Nothing is estimated or patched here; see
`care.diagnosis.neurons.attribution_patching` and `care.diagnosis.neurons.activation_patching`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from care.data.digests import example_digest
from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.diagnosis.activation_means import RoleMeans, goals_of
from care.errors import UsageError
from care.models.alignment import align
from care.models.batches import Batch
from care.models.hooks import hooked, read
from care.models.passes import Pass
from care.models.sites import Scope, Site, position_classes, scope_mask
from care.models.vlm import VLM

Base = Literal["benign", "attack"]


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """N prompts, and for each position in scope the neuron values that theirs are compared with."""

    examples: tuple[Example, ...]
    """The prompts x that are run."""
    scopes: tuple[Scope, ...]
    """Positions at which values are replaced."""
    goals: tuple[str, ...]
    """Which prompts belong together (N,): what the bootstrap resamples."""
    donors: tuple[Example, ...] | None = None
    """The prompts whose values are taken, one for each of `examples`; None: `means`."""
    means: Mapping[Site, Tensor] | None = None
    """Mean per position class (5, F) at every site of neurons."""
    control: Counterfactual | None = None
    """The same kind of replacement where it says nothing about harm (see the constructors)."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise UsageError("Neurons need at least one prompt to be compared on; none was passed.")
        if (self.donors is None) == (self.means is None):
            raise UsageError("Neurons are compared with donors or with means; pass one of them.")
        if self.donors is not None and len(self.donors) != len(self.examples):
            raise UsageError(
                f"{len(self.examples)} prompts need as many donors, got {len(self.donors)}."
            )
        scope_mask(torch.zeros(1, 1, dtype=torch.long), self.scopes)  # a wrong scope fails here

    def told(self) -> dict[str, Any]:
        """What distinguishes this from other comparisons of the same prompts, as plain values."""
        donors = None if self.donors is None else [example_digest(e) for e in self.donors]
        hasher = hashlib.sha256()
        for site, rows in sorted((self.means or {}).items()):
            hasher.update(str(site).encode() + rows.float().cpu().numpy().tobytes())
        return {"scopes": self.scopes, "donors": donors, "means": hasher.hexdigest()}

    @property
    def decision_only(self) -> bool:
        """Whether only the last position of each prompt is touched."""
        return set(self.scopes) == {"decision"}

    @property
    def prompts(self) -> tuple[Example, ...]:
        """All prompts that take part, donors and those of the control included, each once."""
        parts = [*self.examples, *(self.donors or ())]
        parts += self.control.prompts if self.control is not None else ()
        return tuple({id(example): example for example in parts}.values())

    def replacements(
        self,
        vlm: VLM,
        chunk: Sequence[int],
        columns: Mapping[Site, Sequence[int]] | None = None,
    ) -> Replacements:
        """The batch of examples `chunk` and what replaces its neurons; runs the donors if any.

        `columns` names the sites, and neurons of each, that are kept; None keeps all.
        """
        batch = vlm.batch([self.examples[index] for index in chunk])
        mask = scope_mask(batch.roles, self.scopes)
        kept = (
            dict.fromkeys(vlm.anatomy.neurons.columns)
            if columns is None
            else {site: torch.tensor(list(chosen)) for site, chosen in columns.items()}
        )
        if self.donors is None:
            return _mean_rows(batch, mask, self.means or {}, kept)
        donors = vlm.batch([self.donors[index] for index in chunk])
        return _donor_rows(vlm, batch, mask, donors, kept)


@dataclass(frozen=True, eq=False)
class Replacements:
    """One batch and the values that are put in the place of its neurons' own."""

    batch: Batch
    """The B prompts."""
    mask: Tensor
    """Positions that are replaced (B, T), n of them."""
    rows: Mapping[Site, Tensor]
    """Per site the new values at those positions, row by row of `mask`: (n, F) or (n, chosen)."""

    @property
    def row_of(self) -> Tensor:
        """Which prompt each of the n positions belongs to (n,)."""
        return self.mask.nonzero()[:, 0]


def between_pairs(
    pairs: Sequence[Pair], base: Base = "benign", scopes: Sequence[Scope] | None = None
) -> Counterfactual:
    """Each prompt of a pair with neuron values of the other one.

    With base "benign" the benign prompt x runs with the attack's values: the natural indirect
    effect NIE_i = E[m(x | a_i := a_i(x')) − m(x)] (Vig et al. 2020); negative where the attack's
    value lowers refusal. With base "attack" it is the other way round (restoration). Positions
    without a counterpart stay as they are. `scopes` defaults to every position where all pairs say
    the same words beside as many pictures, so that tokens align, and to the decision elsewhere. The
    control gives each benign prompt the values of the next pair's benign prompt.
    """
    if len(pairs) < 2:
        raise UsageError(f"Neurons need at least 2 pairs, got {len(pairs)}; pass more.")
    if base not in ("benign", "attack"):
        raise UsageError(f"base is {base!r}; use benign or attack.")
    chosen = tuple(scopes) if scopes else default_scopes(pairs)
    attacks, benign = (
        tuple(getattr(pair, side) for pair in pairs) for side in ("attack", "benign")
    )
    goals = tuple(goals_of(attacks))
    control = Counterfactual(benign, chosen, goals, (*benign[1:], benign[0]))
    examples, donors = (benign, attacks) if base == "benign" else (attacks, benign)
    return Counterfactual(examples, chosen, goals, donors, control=control)


def against_means(
    vlm: VLM,
    attacks: Sequence[Example],
    benign: Sequence[Example],
    *,
    scopes: Sequence[Scope] = ("all",),
    means: Mapping[Site, Tensor] | None = None,
    batch_size: int = 16,
) -> Counterfactual:
    """Each attack with neuron values replaced by their mean per position class (mean ablation).

    `means` (5, F) per site default to those over `benign` (`neuron_means`): what does a neuron do
    in attacks that it doesn't do in benign prompts? A mean over both would be half of an attack.
    With a positive effect, attacks are refused more without it. The control does the same to
    `benign`.
    """
    if means is None:
        means = neuron_means(vlm, benign, batch_size) if attacks and benign else {}
    scopes = tuple(scopes)
    made = [
        Counterfactual(tuple(part), scopes, tuple(goals_of(part)), means=means)
        for part in (benign, attacks)
        if part
    ]
    if len(made) < 2:
        raise UsageError(
            f"Mean ablation compares attacks with benign prompts, got {len(attacks)} and "
            f"{len(benign)}; pass some of both."
        )
    control, asked = made
    return Counterfactual(asked.examples, scopes, asked.goals, means=means, control=control)


def neuron_means(vlm: VLM, examples: Sequence[Example], batch_size: int = 16) -> dict[Site, Tensor]:
    """Mean value per position class (5, F) of the neurons at every site, over prompts."""
    total, sites = RoleMeans(), list(vlm.anatomy.neurons.columns)

    def work(chunk: list[int]) -> list[None]:
        means = RoleMeans()

        def see(site: Site, h: Tensor, context: Pass) -> None:
            means.add(site, h, context.roles, context.sent)

        batch = vlm.batch([examples[index] for index in chunk])
        with hooked(vlm, {site: partial(see, site) for site in sites}):
            vlm.forward(batch, logits_to_keep=1)
        total.merge(means)
        return [None] * len(chunk)

    vlm.in_batches(list(examples), batch_size, work)
    return total.table()


def default_scopes(pairs: Sequence[Pair]) -> tuple[Scope, ...]:
    """`all` where every pair aligns token by token, `decision` otherwise."""

    def said(example: Example) -> tuple[str, str | None, int, str]:
        return example.prompt, example.system, len(example.images), example.opening

    aligned = all(said(pair.attack) == said(pair.benign) for pair in pairs)
    return ("all",) if aligned else ("decision",)


# -- values ----------------------------------------------------------------------------------------


def _mean_rows(
    batch: Batch,
    mask: Tensor,
    means: Mapping[Site, Tensor],
    kept: Mapping[Site, Tensor | None],
) -> Replacements:
    classes = position_classes(batch.roles)[mask]
    rows = {}
    for site, columns in kept.items():
        if site not in means:
            raise UsageError(f"Mean ablation needs means[{site}]; none was given.")
        table = means[site].to(classes.device)
        chosen = table if columns is None else table[:, columns.to(classes.device)]
        rows[site] = chosen[classes]
    return Replacements(batch, mask, rows)


def _donor_rows(
    vlm: VLM, batch: Batch, mask: Tensor, donors: Batch, kept: Mapping[Site, Tensor | None]
) -> Replacements:
    """Only what is needed of the donors' run is kept: n positions, not B × T."""
    index, found = align(batch.roles, donors.roles)
    mask = mask & found
    prompt, place = mask.nonzero()[:, 0], index[mask]
    rows: dict[Site, Tensor] = {}

    def keep(site: Site, h: Tensor, roles: Tensor) -> None:
        taken = h.detach()[prompt.to(h.device), place.to(h.device)]
        columns = kept[site]
        rows[site] = taken if columns is None else taken[:, columns.to(h.device)]

    with read(vlm, list(kept), sink=keep):
        vlm.forward(donors, logits_to_keep=1)
    return Replacements(batch, mask, rows)
