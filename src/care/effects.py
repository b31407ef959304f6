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
on paper whatever is measured; so it is checked between two ways to compute (whole passes, and
replays in other batches), and fails if a run isn't what it is taken for.

Activations are put in at corresponding positions (`care.pairs.align`). Whole residual streams
(`layer_out`) of aligned pairs carry everything if they are put in at every position; give a scope.
Not here: single neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap

from care.ablation import ablate, first_needed
from care.activations import goals_of
from care.anatomy import Role, Scope, Site, scope_mask
from care.checks import require, require_level
from care.errors import FitError, UsageError
from care.hooks import read
from care.metrics import Measure, Part, first_token, refusal_log_odds
from care.pairs import Pair, align
from care.replay import Replay
from care.scan import name_of
from care.statistics import Interval, bootstrap_mean
from care.vlm import VLM

Mediator = tuple[Site, ...]


@dataclass(frozen=True)
class EffectsConfig:
    """Settings of `site_effects`."""

    scopes: tuple[Scope, ...] = ("all",)
    """Positions at which activations are exchanged."""

    batch_size: int = 16
    """Pairs per forward pass."""

    max_cache_bytes: int = 4 * 2**30
    """Most that is remembered of the clean runs of a batch (`care.replay`)."""

    check_pairs: int = 4
    """Pairs on which the identity is checked, evenly spaced; each costs a few whole passes."""

    level: float = 0.95
    """Confidence level of all intervals."""

    resamples: int = 2000
    """Bootstrap resamples (of goals)."""

    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        require(self, {"batch_size": 1, "check_pairs": 1, "resamples": 1})
        require_level(self.level)


@dataclass(frozen=True)
class SiteEffects:
    """What one mediator carries, in units of the measure: means over pairs, by goal."""

    sites: Mediator
    """The mediator: a site, or the sites of a window."""
    metric: str
    """The measure m, with its unit."""
    total: Interval
    """TE."""
    direct: Interval
    """NDE."""
    indirect: Interval
    """NIE, x → x'."""
    reversed_indirect: Interval
    """NIE(x' → x)."""
    identity_error: float
    """Largest |TE − (NDE − NIE(x'→x))| over the checked pairs."""
    noising: Interval | None
    """NIE / TE: share of the effect that the site brings into a clean run; None if the interval of
    the total effect contains 0."""
    denoising: Interval | None
    """−NIE(x'→x) / TE: share that is undone by cleaning the site in the attack run."""
    aligned: float
    """Share of the attacks' positions in scope that have a counterpart."""

    @property
    def name(self) -> str:
        """`16.ffn_out`, or `15-17.ffn_out` for a window."""
        return name_of(self.sites)

    def to_json(self) -> dict[str, Any]:
        """An item of `causal` in report.json; `site` is the name."""
        tree = asdict(self)
        del tree["sites"]
        return {"site": self.name, "window": len(self.sites), **tree}


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
    measure: Measure | None = None,
    config: EffectsConfig | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[SiteEffects, ...]:
    """Total, direct and indirect effects of N pairs through each of S mediators.

    `measure` is m, by default the refusal log-odds. `advance` gets the number of newly finished
    (pair, mediator) combinations.

    Raises UsageError without mediators, FitError for values that aren't finite, SiteError for
    unknown sites; at least two goals are needed.
    """
    config = config or EffectsConfig()
    measure = measure or first_token(refusal_log_odds(vlm))
    chosen = _mediators(vlm, mediators)
    if len(set(goals_of([pair.attack for pair in pairs]))) < 2:
        raise UsageError(
            f"Effects need pairs with at least 2 different goals, got {len(pairs)} pairs."
        )
    found = exchange(vlm, pairs, chosen, measure, config, advance)
    errors = _identity_errors(vlm, pairs, chosen, measure, found, config)
    goals = goals_of([pair.attack for pair in pairs])
    return tuple(
        _effects(sites, measure, found, row, float(errors[row]), goals, config)
        for row, sites in enumerate(chosen)
    )


def exchange(
    vlm: VLM,
    pairs: Sequence[Pair],
    mediators: Sequence[Mediator],
    measure: Measure,
    config: EffectsConfig,
    advance: Callable[[int], None] | None = None,
) -> Exchanged:
    """Run every pair as it is and with each mediator's activations exchanged."""
    pairs = list(pairs)

    def work(chunk: list[int]) -> list[tuple[np.ndarray, float]]:
        some = [pairs[index] for index in chunk]
        parts = [
            _Exchange(vlm, some, part, config.max_cache_bytes // (2 * len(measure.parts)))
            for part in measure.parts
        ]
        rows = [np.sum([part.clean for part in parts], axis=0)]
        for sites in mediators:
            values = [part.exchanged(sites, config.scopes) for part in parts]
            rows.append(np.sum(values, axis=0))
            if advance is not None:
                advance(len(chunk))
        shares = parts[0].aligned(config.scopes)
        return list(zip(np.stack(rows).transpose(2, 0, 1), shares, strict=True))

    attacks = [pair.attack for pair in pairs]
    found = vlm.in_batches(attacks, config.batch_size, work)
    values = np.stack([row for row, _ in found], axis=-1)  # (1 + S, 2, N)
    if not np.isfinite(values).all():
        raise FitError(
            f"The {measure.name} aren't finite for {int((~np.isfinite(values)).any((0, 1)).sum())} "
            f"of {len(pairs)} pairs; run the model in float32 or bfloat16."
        )
    aligned = np.array([share for _, share in found])
    return Exchanged(values[0, 0], values[0, 1], values[1:, 0], values[1:, 1], aligned)


class _Exchange:
    """Both runs of a batch of pairs in one pass of a measure.

    Attributes: `clean` (2, B), signed values of the runs as they are: benign, attack.
    """

    def __init__(self, vlm: VLM, pairs: Sequence[Pair], part: Part, max_bytes: int | None) -> None:
        self.vlm, self.part = vlm, part
        self.runs: list[Replay] = []
        for examples in ([pair.benign for pair in pairs], [pair.attack for pair in pairs]):
            batch = part.batch(vlm, examples)
            self.runs.append(Replay(vlm, batch, keep=part.keep(batch), max_bytes=max_bytes))
        self.clean = np.stack([_value(part, run, run.clean_outputs) for run in self.runs])

    def exchanged(self, sites: Mediator, scopes: Sequence[Scope]) -> np.ndarray:
        """Signed values (2, B) with what the other run has at `sites`."""
        held = [run.activations(sites) for run in self.runs]
        start = first_needed(sites, "paired")
        values = []
        for run, donors in zip(self.runs, reversed(held), strict=True):
            with ablate(self.vlm, sites, "paired", scopes=scopes, donors=donors):
                values.append(_value(self.part, run, run.outputs(start)))
        return np.stack(values)

    def aligned(self, scopes: Sequence[Scope]) -> list[float]:
        """Share of each attack's prompt positions in scope that have a counterpart (B,)."""
        benign, attack = (run.batch.roles for run in self.runs)
        _, found = align(attack, benign)
        asked = scope_mask(attack, scopes) & (attack != Role.RESPONSE)
        return ((found & asked).sum(1) / asked.sum(1).clamp_min(1)).tolist()


def _value(part: Part, run: Replay, outputs: Any) -> np.ndarray:
    return part.sign * part.read(run.batch, outputs).double().cpu().numpy()


def _identity_errors(
    vlm: VLM,
    pairs: Sequence[Pair],
    mediators: Sequence[Mediator],
    measure: Measure,
    found: Exchanged,
    config: EffectsConfig,
) -> np.ndarray:
    """Largest |TE − (NDE − NIE(x'→x))| of each mediator (S,) over some pairs.

    TE and NDE come from whole passes over these pairs alone, NIE(x'→x) from `found`.
    """
    number = min(config.check_pairs, len(pairs))
    picked = [index * len(pairs) // number for index in range(number)]
    some = [pairs[index] for index in picked]
    reversed_indirect = (found.denoised - found.attacked)[:, picked]
    total, direct = np.zeros(number), np.zeros((len(mediators), number))
    for part in measure.parts:
        runs = []
        for examples in ([pair.benign for pair in some], [pair.attack for pair in some]):
            batch = part.batch(vlm, examples)
            runs.append(Replay(vlm, batch, reuse=False, keep=part.keep(batch)))
        benign, attacked = (_value(part, run, run.clean_outputs) for run in runs)
        total += attacked - benign
        sites = sorted({site for mediator in mediators for site in mediator})
        with read(vlm, sites) as recorder:
            runs[0].outputs(0)
        for row, mediator in enumerate(mediators):
            donors = {site: recorder[site] for site in mediator}
            with ablate(vlm, mediator, "paired", scopes=config.scopes, donors=donors):
                direct[row] += _value(part, runs[1], runs[1].outputs(0)) - benign
    return np.abs(total - (direct - reversed_indirect)).max(axis=1)


def _effects(
    sites: Mediator,
    measure: Measure,
    found: Exchanged,
    row: int,
    error: float,
    goals: Sequence[str],
    config: EffectsConfig,
) -> SiteEffects:
    total = found.attacked - found.clean
    indirect = found.noised[row] - found.clean
    undone = found.denoised[row] - found.attacked

    def mean(values: np.ndarray) -> Interval:
        return bootstrap_mean(
            values, goals, n=config.resamples, seed=config.seed, level=config.level
        )

    whole = mean(total)
    known = whole.low > 0 or whole.high < 0
    return SiteEffects(
        sites=sites,
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
) -> Interval:
    """Ratio of two means over the same pairs, with its percentile bootstrap interval over goals."""
    inverse = np.unique(goals, return_inverse=True)[1]
    sums = [np.bincount(inverse, weights=values) for values in (part, whole)]
    limits = bootstrap(
        sums,
        lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=config.resamples,
        confidence_level=config.level,
        method="percentile",
        rng=np.random.default_rng(config.seed),
    ).confidence_interval
    rate = float(part.mean() / whole.mean())
    return Interval(rate, float(limits.low), float(limits.high), len(part))


def _mediators(vlm: VLM, given: Sequence[Site | Mediator]) -> list[Mediator]:
    mediators = [(item,) if isinstance(item, Site) else tuple(item) for item in given]
    if not mediators:
        raise UsageError("Effects need at least one mediator; pass a site or a window of sites.")
    for mediator in mediators:
        vlm.anatomy.check(mediator)
    return mediators
