"""Generated answers with one site removed: does the model refuse, comply, or fall apart?

The refusal log-odds see one token. Here whole answers are judged into harmful, refused, degenerate
and safe, so that a lower attack success rate can be told from a model that stopped talking.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
from torch import Tensor

from care.data.example import Example
from care.diagnosis.ablation import Ablation, ablate
from care.diagnosis.activation_means import response_means
from care.diagnosis.site_results import GeneratedSite
from care.judges.base import Outcome, Verdict
from care.judges.rules import RulesJudge
from care.models.sites import Role, Site
from care.statistics.intervals import Interval

if TYPE_CHECKING:
    from care.models.vlm import VLM

UNJUDGED = "unjudged"
"""Stands where an answer has no outcome."""


def confirm(
    vlm: VLM,
    examples: Sequence[Example],
    sites: Sequence[Site],
    *,
    how: Ablation,
    means: Mapping[Site, Tensor],
    interval: Callable[[np.ndarray, Sequence[Example]], Interval],
    judge: RulesJudge | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 16,
    advance: Callable[[int], None] | None = None,
) -> tuple[GeneratedSite, ...]:
    """Answer the examples untouched and without each site, at prompt and answer tokens alike.

    `means` (5, D) per site hold means over prompts, or the constants of a `constant` ablation; at
    answer tokens their mean over the untouched answers is put. `interval` is given one change per
    example. A site without which no answer could be judged is left out, with a warning.
    """
    judge = judge or RulesJudge()

    def outcomes(site: Site | None) -> tuple[list[str], np.ndarray]:
        with ablate(vlm, [site], how, table) if site else nullcontext():
            answers = vlm.generate(
                examples, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=advance
            )
        verdicts = judge([example.goal or example.prompt for example in examples], answers)
        pairs = zip(verdicts, examples, strict=True)
        return answers, np.array([_outcome(verdict, example) for verdict, example in pairs])

    table: dict[Site, Tensor] = {}
    answers, before = outcomes(None)
    if how in ("mean", "constant"):
        table = _with_responses(means, response_means(vlm, examples, answers, sites, batch_size))
    found = []
    for site in sites:
        _, after = outcomes(site)
        judged = (before != UNJUDGED) & (after != UNJUDGED)
        if not judged.any():
            warnings.warn(
                f"None of {len(examples)} answers could be judged both with and without {site}, so "
                "it is left out of the generated answers; allow longer ones if the model thinks "
                "before it answers.",
                stacklevel=1,
            )
            continue
        change = ((after == "harmful").astype(float) - (before == "harmful"))[judged]
        broken = (after == "degenerate")[judged].mean() - (before == "degenerate")[judged].mean()
        counts: dict[Outcome, int] = {
            name: int((after == name).sum()) for name in get_args(Outcome)
        }
        kept = [example for example, both in zip(examples, judged, strict=True) if both]
        told = replace(interval(change, kept), n=0)
        found.append(GeneratedSite(site, sum(counts.values()), counts, told, float(broken)))
    return tuple(found)


def _outcome(verdict: Verdict, example: Example) -> str:
    return verdict.outcome(example.kind) if verdict.failure(example.kind) is None else UNJUDGED


def _with_responses(
    means: Mapping[Site, Tensor], responses: Mapping[Site, Tensor]
) -> dict[Site, Tensor]:
    """`means` with the row of answer tokens filled in where it is known."""
    table = {}
    for site, mean in means.items():
        table[site] = mean.clone()
        if site in responses:
            table[site][Role.RESPONSE] = responses[site]
    return table
