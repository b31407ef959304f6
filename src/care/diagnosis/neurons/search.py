"""Which FFN neurons carry an effect: all are estimated, the best are verified, chance is measured.

1. The effect of every neuron of every layer is estimated from gradients
   (`care.diagnosis.neurons.attribution_patching`).
2. The top 0.1 % by absolute estimate, and as many random neurons of the same size (the norm of what
   they write, ‖w_i‖ · rms(a_i)), are replaced one by one for real
   (`care.diagnosis.neurons.activation_patching`).
3. Over both, estimate and effect are compared: Spearman's ρ, and precision@k, the share of the k
   greatest estimates that are among the k greatest effects.
4. Each effect has a bootstrap interval over goals, and a two-sided p-value of the sign-flip test
   over goals: under the null hypothesis the effect on a goal is as likely −e as e. Benjamini and
   Hochberg's q is over all that were verified.

The top neurons are chosen on the prompts they are verified on, unless `verify` brings others; then
the intervals and p-values aren't flattered by that choice. What the neurons do is in
`care.diagnosis.neurons.interpretation`; suppressing them is `care.defenses.neuron_suppression`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import false_discovery_control

from care.data.digests import example_digest
from care.diagnosis.measures import Metric
from care.diagnosis.neurons.activation_patching import patch
from care.diagnosis.neurons.attribution_patching import (
    Estimates,
    Method,
    check_method,
    estimate,
    goal_groups,
)
from care.diagnosis.neurons.interpretation import firings, written_tokens
from care.diagnosis.neurons.interventions import Counterfactual
from care.diagnosis.neurons.results import NeuronEffect, NeuronReport
from care.errors import FitError, UsageError
from care.models.sites import Neuron
from care.models.vlm import VLM
from care.runs.kept_batches import KeptBatches
from care.runs.progress import Bar, silent
from care.runs.settings import require
from care.statistics.bootstrap import percentiles
from care.statistics.correlation import Correlation, rank_correlations
from care.statistics.intervals import Interval
from care.statistics.sampling import SamplingSpec, flat
from care.statistics.sign_flips import sign_flip_p

LEAST_VERIFIED = 8
"""Neurons that are verified at least."""

_SHARE = 0.001
_NEAREST = 64


@dataclass(frozen=True)
class NeuronConfig:
    """Settings of `find_neurons`."""

    method: Method = "atp"
    """How effects are estimated: `atp`, `ig` or `graddrop`."""

    steps: int = 8
    """Points on the path of integrated gradients."""

    groups: int = 4
    """Groups of layers that GradDrop leaves out one after the other."""

    verified: int | None = None
    """Neurons that are replaced for real, and controls; None: 0.1 % of all, 8 at least."""

    described: int = 5
    """Prompts and patches shown for each neuron; 0 leaves out what neurons do."""

    batch_size: int = 16
    """Examples per forward pass."""

    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    """Confidence level, resamples, also of the random sign flips, and seed, also of the choice of
    controls."""

    def __post_init__(self) -> None:
        check_method(self.method, self.steps, self.groups)
        require(self, {"verified": LEAST_VERIFIED, "described": 0, "batch_size": 1})


def find_neurons(
    vlm: VLM,
    question: Counterfactual,
    *,
    verify: Counterfactual | None = None,
    config: NeuronConfig | None = None,
    metric: Metric | None = None,
    estimates: Estimates | None = None,
    progress: Bar | None = None,
    kept: KeptBatches | None = None,
) -> NeuronReport:
    """Estimate all neurons, verify the best ones, and say what they do.

    Parameters:
        question: the prompts and what their neurons are compared with (`between_pairs`,
            `against_means`).
        verify: other prompts to verify on; default those of `question`.
        metric: of the logits at the last position; the refusal log-odds by default.
        estimates: those of `question`, if they have been made already.
        kept: estimates and batches of an earlier attempt, which aren't asked again; for the
            default `metric`.

    Raises: UsageError for fewer than two goals or neurons; DataError and FitError as `estimate`.
    """
    config = config or NeuronConfig()
    verify = verify or question
    n_neurons = vlm.anatomy.neurons.total
    count = verified_count(config, n_neurons)
    if len(set(verify.goals)) < 2:
        raise UsageError("Neurons are verified on at least 2 goals, got 1; pass more prompts.")
    controlled = 0 if verify.control is None else len(verify.control.examples)
    steps = len(question.examples) + count * (2 * len(verify.examples) + controlled)
    with (progress or silent)("neurons", steps) as bar:
        if estimates is None:
            estimates = _estimated(vlm, question, config, metric, bar.advance, kept)
        top = estimates.ranking(count)
        controls = matched_controls(vlm, estimates, top, config.sampling.seed)
        options = {"metric": metric, "batch_size": config.batch_size, "advance": bar.advance}
        options["kept"] = kept
        effects = patch(vlm, verify, [*top, *controls], **options).effects
        harmless = None
        if verify.control is not None:
            harmless = patch(vlm, verify.control, top, **options).effects.mean(1)
    rows = _rows(estimates, effects, verify, [*top, *controls], harmless, config)
    spearman, precision = _agreement(
        estimates, effects, question, verify, [*top, *controls], config
    )
    found = sorted(rows[:count], key=lambda item: -abs(item.exact))
    if config.described:
        found = _described(vlm, found, verify, config)
    return NeuronReport(
        method=estimates.method,
        n_neurons=n_neurons,
        steps=estimates.steps,
        forward_equivalents=estimates.forward_equivalents,
        scopes=question.scopes,
        spearman=Correlation.of(spearman),
        precision=precision,
        control_ratio=_control_ratio(found, rows[count:]),
        found=tuple(found),
        controls=tuple(rows[count:]),
    )


def matched_controls(
    vlm: VLM, estimates: Estimates, top: Sequence[Neuron], seed: int = 0
) -> list[Neuron]:
    """For each of `top` a random other neuron that writes about as much, of any layer.

    What a neuron writes is ‖w_i‖ · rms(a_i) over the positions in scope; the control is drawn from
    the 64 nearest in that. No neuron is drawn twice.
    """
    table = vlm.anatomy.neurons
    written = np.zeros(table.shape)
    for site, columns in table.columns.items():
        norms = vlm.anatomy.output_columns(site).float().norm(dim=0)
        written[site.layer, columns] = norms.cpu().numpy()
    size = (written * estimates.size).ravel()
    rng = np.random.default_rng(seed)
    own = table.flat(top)
    taken = set(own.tolist())
    order = np.argsort(size, kind="stable")
    order = order[table.real.ravel()[order]]
    place = {int(flat): at for at, flat in enumerate(order)}
    chosen: list[int] = []
    for best in own.tolist():
        flat = _near(order, place[best], taken, rng)
        taken.add(flat)
        chosen.append(flat)
    return table.neurons(chosen)


def _near(order: np.ndarray, at: int, taken: set[int], rng: np.random.Generator) -> int:
    """One of the `_NEAREST` free neurons next to place `at` of an order by size."""
    reach = _NEAREST // 2
    while True:
        around = order[max(0, at - reach) : at + reach + 1]
        free = [int(flat) for flat in around if int(flat) not in taken]
        if len(free) >= min(_NEAREST // 2, len(order) - len(taken)) and free:
            return free[int(rng.integers(len(free)))]
        reach *= 2


# -- inside ----------------------------------------------------------------------------------------


def verified_count(config: NeuronConfig, n_neurons: int) -> int:
    """How many neurons are replaced for real; UsageError for more than half of them."""
    count = config.verified or max(LEAST_VERIFIED, math.ceil(_SHARE * n_neurons))
    if 2 * count > n_neurons:
        raise UsageError(
            f"{count} neurons and as many controls can't be verified in a model that has "
            f"{n_neurons}; set verified to at most {n_neurons // 2}."
        )
    return count


def _estimated(
    vlm: VLM,
    question: Counterfactual,
    config: NeuronConfig,
    metric: Metric | None,
    advance: Callable[[int], None],
    kept: KeptBatches | None,
) -> Estimates:
    """The estimates, made now or kept; they are sums over all batches, so kept as a whole."""

    def made(chunk: list[int]) -> list[Estimates]:
        found = estimate(
            vlm,
            question,
            config.method,
            steps=config.steps,
            groups=config.groups,
            metric=metric,
            batch_size=config.batch_size,
            advance=advance,
        )
        return [found]

    if kept is None:
        return made([])[0]
    numbers = ("steps", "forward_equivalents")
    arrays = ("sums", "counts", "size")

    def pack(found: list[Estimates]) -> dict[str, np.ndarray]:
        parts = {name: np.asarray(getattr(found[0], name)) for name in (*numbers, *arrays)}
        return {name: part.reshape(part.shape or (1,)) for name, part in parts.items()}

    def unpack(parts: dict[str, np.ndarray]) -> list[Estimates]:
        advance(len(question.examples))
        steps, cost = (int(parts[name][0]) for name in numbers)
        sums, counts, size = (parts[name] for name in arrays)
        return [Estimates(config.method, steps, cost, sums, counts, size, vlm.anatomy.neurons)]

    facts = {"question": question.told(), "goals": question.goals, "config": flat(config)}
    digests = [example_digest(example) for example in question.examples]
    asking = kept.over(made, digests, facts, pack, unpack)
    return asking(list(range(len(question.examples))))[0]


def _rows(
    estimates: Estimates,
    effects: np.ndarray,
    verify: Counterfactual,
    neurons: Sequence[Neuron],
    harmless: np.ndarray | None,
    config: NeuronConfig,
) -> list[NeuronEffect]:
    """Effects (M, N) as rows of the table; `harmless` are control effects of the first ones."""
    spec = config.sampling
    limits = [spec.mean(values, verify.goals) for values in effects]
    p = sign_flip_p(_by_goal(effects, verify)[0], spec.resamples, spec.seed)
    q = false_discovery_control(p)
    mean = estimates.mean
    return [
        NeuronEffect(
            layer=neuron[0],
            neuron=neuron[-1],
            expert=neuron[1] if len(neuron) > 2 else None,
            estimate=float(mean[estimates.table.place(neuron)]),
            exact=limits[k].rate,
            low=limits[k].low,
            high=limits[k].high,
            p=float(p[k]),
            q=float(q[k]),
            benign_exact=None if harmless is None or k >= len(harmless) else float(harmless[k]),
            top_tokens=(),
            suppressed_tokens=(),
            examples=(),
            patches=(),
        )
        for k, neuron in enumerate(neurons)
    ]


def _by_goal(effects: np.ndarray, asked: Counterfactual) -> tuple[np.ndarray, np.ndarray]:
    """Sums of effects (M, N) over each group of goals (G, M), and the size of each group (G,)."""
    group = goal_groups(asked.goals)
    sums = np.zeros((group.max() + 1, len(effects)))
    np.add.at(sums, group, effects.T)
    return sums, np.bincount(group)


def _agreement(
    estimates: Estimates,
    effects: np.ndarray,
    question: Counterfactual,
    verify: Counterfactual,
    neurons: Sequence[Neuron],
    config: NeuronConfig,
) -> tuple[Interval, dict[str, float]]:
    """Spearman's ρ and precision@k of estimate and effect over the verified and the controls."""
    layers, places = np.array([estimates.table.place(neuron) for neuron in neurons]).T
    guessed, caused = estimates.mean[layers, places], effects.mean(1)
    rho = float(rank_correlations(guessed[None], caused[None])[0])
    if not math.isfinite(rho):
        raise FitError(
            "Estimates and effects can't be compared: all of one side are equal, so no neuron does "
            f"anything in scope {', '.join(question.scopes)}; choose another scope or metric."
        )
    sums, counts = _by_goal(effects, verify)
    drawn = config.sampling.draws(len(counts))
    again = (drawn @ sums) / (drawn @ counts)[:, None]
    guesses = np.broadcast_to(guessed, again.shape)
    if np.array_equal(counts, estimates.counts) and verify is question:
        # Both sides vary with the goals.
        both = estimates.sums[:, layers, places].astype(np.float64)
        guesses = (drawn @ both) / (drawn @ counts)[:, None]
    low, high = percentiles(rank_correlations(guesses, again), config.sampling.level)
    sizes = sorted({LEAST_VERIFIED, len(neurons) // 2})
    precision = {str(k): _precision(guessed, caused, k) for k in sizes}
    return Interval(rho, low, high, len(neurons)), precision


def _control_ratio(found: Sequence[NeuronEffect], controls: Sequence[NeuronEffect]) -> float | None:
    """Mean |effect| of the verified neurons over that of the controls."""
    mean, chance = (np.mean([abs(item.exact) for item in part]) for part in (found, controls))
    return float(mean / chance) if chance > 0 else None


def _precision(guessed: np.ndarray, caused: np.ndarray, k: int) -> float:
    best = [
        set(np.argsort(-np.abs(part), kind="stable")[:k].tolist()) for part in (guessed, caused)
    ]
    return len(best[0] & best[1]) / k


def _described(
    vlm: VLM, found: Sequence[NeuronEffect], asked: Counterfactual, config: NeuronConfig
) -> list[NeuronEffect]:
    """The rows with what the neurons write and fire on."""
    neurons = [item.key for item in found]
    written = written_tokens(vlm, neurons)
    fires = firings(vlm, asked.prompts, neurons, config.described, config.batch_size)
    return [
        replace(
            item,
            top_tokens=tokens.promoted,
            suppressed_tokens=tokens.suppressed,
            examples=places.texts,
            patches=places.patches,
        )
        for item, tokens, places in zip(found, written, fires, strict=True)
    ]
