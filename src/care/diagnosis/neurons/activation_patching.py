"""Exact effects of chosen neurons: each is really replaced, one at a time, and the model run again.

    effect_i(x) = m(x | do(a_i,t := a*_i,t for t in scope)) − m(x)

Nothing before the neuron changes, so it isn't computed again: where only the last position is
touched, everything before it is read once (`care.models.prompt_cache`) and each patch costs one
token; else layers below the neuron come from the clean pass (`care.models.replay.Replay`). Which
neurons are worth it, and what the figures mean, is for `care.diagnosis.neurons.search`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from care.data.digests import example_digest
from care.diagnosis.measures import Metric, refusal_log_odds
from care.diagnosis.neurons.interventions import Counterfactual, Replacements
from care.errors import FitError, UsageError
from care.models.hooks import edit
from care.models.prompt_cache import Start, first_logits, read_prompts
from care.models.replay import Replay
from care.models.sites import Neuron, Site, neuron_site
from care.models.vlm import VLM
from care.runs.kept_batches import KeptBatches


class Patched(NamedTuple):
    """The metric on N prompts under M patches."""

    clean: np.ndarray
    """Metric of the untouched model (N,)."""
    effects: np.ndarray
    """Metric with one neuron replaced minus `clean` (M, N)."""


def patch(
    vlm: VLM,
    question: Counterfactual,
    neurons: Sequence[Neuron],
    *,
    metric: Metric | None = None,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
    kept: KeptBatches | None = None,
) -> Patched:
    """Effect of replacing each neuron alone, on every prompt.

    `advance` gets the number of newly finished (prompt, neuron) pairs. Batches that are `kept`
    aren't asked again; that is for the default `metric`.

    Raises UsageError for no neurons, SiteError for one that the model doesn't have, FitError for a
    metric that isn't finite.
    """
    metric = metric or refusal_log_odds(vlm)
    check_neurons(vlm, neurons)
    columns: dict[Site, list[int]] = {}
    for neuron in dict.fromkeys(neurons):
        columns.setdefault(neuron_site(neuron), []).append(neuron[-1])
    place = {(at, i): k for at, chosen in columns.items() for k, i in enumerate(chosen)}
    reuse = True

    def work(chunk: list[int]) -> list[list[float]]:
        nonlocal reuse
        found = question.replacements(vlm, chunk, columns)
        run, reuse = _runner(vlm, question, found, reuse)
        values = [metric(run(vlm.anatomy.n_layers)).tolist()]
        for neuron in neurons:
            site, column = neuron_site(neuron), neuron[-1]
            put = partial(_put, found.mask, column, found.rows[site][:, place[site, column]])
            with edit(vlm, {site: put}):
                values.append(metric(run(site.layer)).tolist())
            if advance is not None:
                advance(len(chunk))
        return [list(row) for row in zip(*values, strict=True)]

    asking = work
    if kept is not None:
        facts = {"neurons": list(neurons), "question": question.told()}
        asking = kept.over(
            work,
            [example_digest(example) for example in question.examples],
            facts,
            lambda rows: {"values": np.array(rows)},
            lambda arrays: arrays["values"].tolist(),
        )
    with torch.no_grad():
        rows = vlm.in_batches(list(question.examples), batch_size, asking)
    values = np.array(rows, dtype=np.float64).T
    if not np.isfinite(values).all():
        raise FitError(
            f"The metric isn't finite in {int((~np.isfinite(values)).sum())} of {values.size} "
            "runs; run the model in float32 or bfloat16."
        )
    return Patched(values[0], values[1:] - values[0])


def check_neurons(vlm: VLM, neurons: Sequence[Neuron]) -> None:
    """SiteError unless the model has all of these, UsageError if there are none."""
    if not neurons:
        raise UsageError("No neurons were given; name at least one as (layer, neuron).")
    for neuron in neurons:
        vlm.anatomy.neurons.check(neuron)


def _runner(
    vlm: VLM, question: Counterfactual, found: Replacements, reuse: bool
) -> tuple[Callable[[int], Tensor], bool]:
    """Logits (B, vocabulary) as a function of the first layer that changes; and whether to replay.

    If only the last position changes, all layers are run, but on that position alone.
    """
    if question.decision_only:
        start = read_prompts(vlm.model, vlm.roles, Start.of(found.batch))
        return lambda layer: first_logits(vlm.model, vlm.roles, start), reuse
    replay = Replay(vlm, found.batch, reuse)
    return (
        lambda layer: replay.clean if layer == vlm.anatomy.n_layers else replay.logits(layer)
    ), replay.reuses


def _put(mask: Tensor, neuron: int, values: Tensor, h: Tensor, roles: Tensor) -> Tensor:
    """h (B, t, F) with one neuron's values (n,) at the positions of `mask` (B, T), t ≤ T.

    A pass that continues from a cache holds the last t positions, and the mask nothing before them.
    """
    new = h.clone()
    new[..., neuron][mask[:, -h.shape[1] :].to(h.device)] = values.to(h)
    return new
