"""Total, direct and indirect effects: what an attack changes, and how much of it a site carries.

For a pair of an attack x' and its counterpart x, a mediator z (a site or a window of sites) and a
measure m (Vig et al. 2020, arXiv 2004.12265; Pearl 2001):

    TE         = m(x') − m(x)
    NDE        = m(x', z := z(x)) − m(x)          what is left when the mediator is held
    NIE        = m(x, z := z(x')) − m(x)          what the mediator alone brings along
    NIE(x'→x)  = m(x', z := z(x)) − m(x')         what taking it away undoes
    TE         = NDE − NIE(x'→x)                  an identity

NIE is *noising*: the attack's activation is put into the clean run, which shows that the site is
enough. The reversed NIE is *denoising*: the clean activation is put into the attack run, which
shows that the site is needed. Both are also given as shares of the total effect. The identity holds
on paper whatever is measured; so it is checked between two ways to compute, whole passes and
replays, and fails if a run isn't what it is taken for. Both are of the same batch: in bfloat16 a
pair's log-odds depend on what stands beside it by tenths of a nat, which says nothing about either.

Activations are put in at corresponding positions (`care.models.alignment.align`). Whole residual
streams (`layer_out`) of aligned pairs carry everything if they are put in at every position; give a
scope. Not here: single neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from care.data.digests import example_digest
from care.data.minimal_pairs import Pair
from care.diagnosis.ablation import ablate, first_needed
from care.diagnosis.activation_means import goals_of
from care.diagnosis.measures import Measure, MeasuredPass, first_token, passes, refusal_log_odds
from care.diagnosis.scan import name_of
from care.diagnosis.site_results import Ratio, SiteEffects
from care.errors import FitError, UsageError
from care.models.alignment import align
from care.models.hooks import read
from care.models.replay import Replay
from care.models.sites import Role, Scope, Site, scope_mask
from care.models.vlm import VLM
from care.runs.kept_batches import KeptBatches
from care.runs.settings import require
from care.statistics.sampling import SamplingSpec, flat

Mediator = tuple[Site, ...]

_ROUNDING = 1e-4
"""A total effect below this share of the measure itself is rounding, and nothing a share of it."""

Held = Mapping[Site, tuple[Tensor, Tensor]]
"""Per site: activations (B, T, D) of a run and the roles (B, T) of its positions."""


@dataclass(frozen=True)
class EffectsConfig:
    """Settings of `site_effects`."""

    scopes: tuple[Scope, ...] = ("all",)
    """Positions at which activations are exchanged."""

    batch_size: int = 16
    """Pairs per forward pass, both runs of each."""

    max_cache_bytes: int = 4 * 2**30
    """Most that is remembered of the clean runs of a batch (`care.models.replay`)."""

    check_sites: int = 2
    """Mediators for which the identity is checked, evenly spaced, on the first batch of pairs;
    each costs a whole pass over it."""

    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    """Confidence level, resamples and seed of all intervals."""

    def __post_init__(self) -> None:
        require(self, {"batch_size": 1, "check_sites": 1})


class Exchanged(NamedTuple):
    """m of N pairs when the activations of S mediators are exchanged between the two runs."""

    clean: np.ndarray
    """m(x) (N,)."""
    attacked: np.ndarray
    """m(x') (N,)."""
    noised: np.ndarray
    """m(x, z := z(x')) (S, N)."""
    denoised: np.ndarray
    """m(x', z := z(x)) (S, N)."""
    aligned: np.ndarray
    """Share of the attack's positions in scope that have a counterpart (N,)."""


def site_effects(
    vlm: VLM,
    pairs: Sequence[Pair],
    mediators: Sequence[Site | Mediator],
    *,
    measures: Sequence[Measure] = (),
    config: EffectsConfig | None = None,
    advance: Callable[[int], None] | None = None,
    kept: KeptBatches | None = None,
) -> tuple[SiteEffects, ...]:
    """Total, direct and indirect effects of N pairs through each of S mediators.

    `measures` are several m, by default the refusal log-odds alone; the effects by the first come
    first. Those that need the same answer share a pass. `advance` gets the number of newly
    finished (pair, mediator) combinations. Batches that are `kept` aren't asked again.

    Raises UsageError without mediators, FitError for values that aren't finite, SiteError for
    unknown sites; at least two goals are needed.
    """
    config = config or EffectsConfig()
    measures = measures or [first_token(refusal_log_odds(vlm))]
    chosen = _mediators(vlm, mediators)
    if len(set(goals_of([pair.attack for pair in pairs]))) < 2:
        raise UsageError(
            f"Effects need pairs with at least 2 different goals, got {len(pairs)} pairs."
        )
    errors: dict[int, np.ndarray] = {}
    everything = exchange(vlm, pairs, chosen, measures, config, advance, errors, kept)
    goals = goals_of([pair.attack for pair in pairs])
    return tuple(
        _effects(
            sites,
            measure,
            found,
            row,
            float(errors[row][place]) if row in errors else None,
            goals,
            config,
        )
        for place, (measure, found) in enumerate(zip(measures, everything, strict=True))
        for row, sites in enumerate(chosen)
    )


def exchange(
    vlm: VLM,
    pairs: Sequence[Pair],
    mediators: Sequence[Mediator],
    measures: Sequence[Measure],
    config: EffectsConfig,
    advance: Callable[[int], None] | None = None,
    errors: dict[int, np.ndarray] | None = None,
    kept: KeptBatches | None = None,
) -> list[Exchanged]:
    """Run every pair as it is and with each mediator's activations exchanged; one a measure.

    `errors`, if given, gets the identity's error (M,) for `config.check_sites` of the mediators.
    """
    pairs, runs = list(pairs), passes(measures)
    last, most = len(mediators) - 1, min(config.check_sites, len(mediators))
    checked = np.linspace(0, last, most).round().astype(int).tolist()

    def work(chunk: list[int]) -> list[tuple[np.ndarray, float]]:
        some = [pairs[index] for index in chunk]
        share = config.max_cache_bytes // len(runs)
        made = [_Exchange(vlm, some, run, len(measures), share) for run in runs]
        rows = [np.sum([run.clean for run in made], axis=0)]
        for sites in mediators:
            values = [run.exchanged(sites, config.scopes) for run in made]
            rows.append(np.sum(values, axis=0))
            if advance is not None:
                advance(len(chunk))
        shares = made[0].aligned(config.scopes)
        if errors is not None and not errors:
            replayed = np.stack(rows)[:, 1]  # (1 + S, M, B)
            asked = {row: mediators[row] for row in checked}
            errors.update(_identity_errors(made, asked, config.scopes, replayed))
        return list(zip(np.stack(rows).transpose(3, 0, 1, 2), shares, strict=True))

    attacks, asking = [pair.attack for pair in pairs], work
    if kept is not None:
        facts = {
            "benign": [example_digest(pair.benign) for pair in pairs],
            "mediators": [name_of(sites) for sites in mediators],
            "measures": [measure.name for measure in measures],
            "config": flat(config),
        }
        digests = [example_digest(attack) for attack in attacks]
        asking = kept.over(work, digests, facts, *_forms(len(mediators), errors, advance))
    found = vlm.in_batches(attacks, config.batch_size, asking)
    aligned = np.array([share for _, share in found])
    values = np.stack([row for row, _ in found], axis=-1)  # (1 + S, 2, M, N)
    exchanged = []
    for place, measure in enumerate(measures):
        benign, attack = values[:, :, place].transpose(1, 0, 2)  # each (1 + S, N)
        _check_finite(measure, benign + attack)
        exchanged.append(Exchanged(benign[0], attack[0], benign[1:], attack[1:], aligned))
    return exchanged


def _forms(
    mediators: int,
    errors: dict[int, np.ndarray] | None,
    advance: Callable[[int], None] | None,
) -> tuple[Callable[[Any], dict[str, np.ndarray]], Callable[[Any], Any]]:
    """How a batch is kept: its values, and the identity's errors if they were taken in it."""
    taken: list[int] = []

    def pack(found: list[tuple[np.ndarray, float]]) -> dict[str, np.ndarray]:
        arrays = {
            "values": np.array([row for row, _ in found]),
            "aligned": np.array([share for _, share in found], np.float64),
        }
        if errors and not taken:
            arrays |= {f"error {row}": np.asarray(each) for row, each in errors.items()}
        taken.append(1)
        return arrays

    def unpack(arrays: dict[str, np.ndarray]) -> list[tuple[np.ndarray, float]]:
        found = [(row, float(share)) for row, share in
                 zip(arrays["values"], arrays["aligned"], strict=True)]  # fmt: skip
        stored = {int(k.split()[1]): v for k, v in arrays.items() if k.startswith("error ")}
        if errors is not None and stored:
            errors.update(stored)
        taken.append(1)
        if advance is not None:
            advance(mediators * len(found))
        return found

    return pack, unpack


def _check_finite(measure: Measure, values: np.ndarray) -> None:
    bad = int((~np.isfinite(values)).any(axis=0).sum())
    if bad:
        raise FitError(
            f"The {measure.name} aren't finite for {bad} of {values.shape[1]} pairs; run the model "
            "in float32 or bfloat16."
        )


class _Exchange:
    """Both runs of B pairs in one pass for M measures, benign rows first, then the attacks'.

    Where the two sides have unequal numbers of images they are two batches, since not every
    processor mixes such rows. Attributes: `clean` (2, M, B), signed values of the runs as they are.
    """

    def __init__(
        self,
        vlm: VLM,
        pairs: Sequence[Pair],
        run: MeasuredPass,
        measures: int,
        max_bytes: int | None,
    ) -> None:
        self.vlm, self.run, self.measures = vlm, run, measures
        groups = [[pair.benign for pair in pairs], [pair.attack for pair in pairs]]
        if len({len(example.images) for group in groups for example in group}) == 1:
            groups = [groups[0] + groups[1]]
        self.replays = []
        for group in groups:
            batch, share = run.sharing.batch(vlm, group), max_bytes and max_bytes // len(groups)
            keep = run.sharing.keep(batch)
            self.replays.append(Replay(vlm, batch, keep=keep, max_bytes=share))
        self.clean = self._values([replay.clean_outputs for replay in self.replays])

    def _values(self, outputs: Sequence[Tensor]) -> np.ndarray:
        """Signed values (2, M, B): benign, attack."""
        found = [
            self.run.values(replay.batch, logits, self.measures)
            for replay, logits in zip(self.replays, outputs, strict=True)
        ]
        return np.stack(np.split(np.concatenate(found, axis=-1), 2, axis=-1))

    def exchanged(self, sites: Mediator, scopes: Sequence[Scope]) -> np.ndarray:
        """Signed values (2, M, B) with what the other run has at `sites`."""
        held = [replay.activations(sites) for replay in self.replays]
        start = first_needed(sites, "paired")
        return self._outputs(sites, scopes, held, [r.outputs for r in self.replays], start)

    def whole(
        self, mediators: Mapping[int, Mediator], scopes: Sequence[Scope]
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Values (2, M, B) by whole passes: as they are, and with each mediator exchanged."""
        fresh = [Replay(self.vlm, r.batch, reuse=False, keep=r.keep) for r in self.replays]
        sites = sorted({site for mediator in mediators.values() for site in mediator})
        known: list[dict[Site, tuple[Tensor, Tensor]]] = []
        for replay in fresh:
            with read(self.vlm, sites) as recorder:
                replay.outputs(0)
                known.append({site: recorder[site] for site in sites})
        held = {}
        for row, mediator in mediators.items():
            donors = [{site: own[site] for site in mediator} for own in known]
            held[row] = self._outputs(mediator, scopes, donors, [r.outputs for r in fresh], 0)
        return self._values([replay.clean_outputs for replay in fresh]), held

    def _outputs(
        self,
        sites: Mediator,
        scopes: Sequence[Scope],
        held: Sequence[Held],
        runs: Sequence[Callable[[int], Tensor]],
        start: int,
    ) -> np.ndarray:
        """Values (2, M, B) of `runs` from `start` on, each row with its counterpart's `held`."""
        outputs = []
        for run, donors in zip(runs, _swapped(held), strict=True):
            with ablate(self.vlm, sites, "paired", scopes=scopes, donors=donors):
                outputs.append(run(start))
        return self._values(outputs)

    def aligned(self, scopes: Sequence[Scope]) -> list[float]:
        """Share of each attack's prompt positions in scope that have a counterpart (B,)."""
        roles = [replay.batch.roles for replay in self.replays]
        benign, attack = roles[0].chunk(2) if len(roles) == 1 else roles
        _, found = align(attack, benign)
        asked = scope_mask(attack, scopes) & (attack != Role.RESPONSE)
        return ((found & asked).sum(1) / asked.sum(1).clamp_min(1)).tolist()


def _swapped(held: Sequence[Held]) -> list[Held]:
    """The same with the activations and roles of each row's counterpart in the other half."""
    if len(held) == 2:
        return [held[1], held[0]]
    return [
        {
            site: (h.roll(len(h) // 2, dims=0), roles.roll(len(h) // 2, dims=0))
            for site, (h, roles) in held[0].items()
        }
    ]


def _identity_errors(
    exchanges: Sequence[_Exchange],
    mediators: Mapping[int, Mediator],
    scopes: Sequence[Scope],
    replayed: np.ndarray,
) -> dict[int, np.ndarray]:
    """Largest |TE − (NDE − NIE(x'→x))| of a pair (M,), for some mediators.

    TE and NDE come from whole passes; NIE(x'→x) from `replayed` (1 + S, M, B), the attacks' values
    as they are and with each mediator denoised.
    """
    total, direct = 0.0, dict.fromkeys(mediators, 0.0)
    for one in exchanges:
        (benign, attacked), held = one.whole(mediators, scopes)
        total = total + attacked - benign
        direct = {row: direct[row] + held[row][1] - benign for row in mediators}
    undone = replayed[1:] - replayed[0]
    return {row: np.abs(total - (direct[row] - undone[row])).max(axis=-1) for row in mediators}


def _effects(
    sites: Mediator,
    measure: Measure,
    found: Exchanged,
    row: int,
    error: float | None,
    goals: Sequence[str],
    config: EffectsConfig,
) -> SiteEffects:
    total = found.attacked - found.clean
    indirect = found.noised[row] - found.clean
    undone = found.denoised[row] - found.attacked

    mean = partial(config.sampling.mean, goals=goals)
    whole = mean(total)
    size = float(np.abs([found.attacked, found.clean]).mean())
    known = (whole.low > 0 or whole.high < 0) and abs(whole.rate) > _ROUNDING * size
    return SiteEffects(
        site=name_of(sites),
        window=len(sites),
        metric=measure.name,
        total=whole,
        direct=mean(found.denoised[row] - found.clean),
        indirect=mean(indirect),
        reversed_indirect=mean(undone),
        identity_error=error,
        noising=_share(indirect, total, goals, config) if known else None,
        denoising=_share(-undone, total, goals, config) if known else None,
        aligned=float(found.aligned.mean()),
    )


def _share(
    part: np.ndarray, whole: np.ndarray, goals: Sequence[str], config: EffectsConfig
) -> Ratio:
    """Ratio of two means over the same pairs, with its interval over goals."""
    found = config.sampling.ratio(part, whole, goals)
    return Ratio(found.rate, found.low, found.high, found.n)


def _mediators(vlm: VLM, given: Sequence[Site | Mediator]) -> list[Mediator]:
    mediators = [(item,) if isinstance(item, Site) else tuple(item) for item in given]
    if not mediators:
        raise UsageError("Effects need at least one mediator; pass a site or a window of sites.")
    for mediator in mediators:
        vlm.anatomy.check(mediator)
    return mediators
