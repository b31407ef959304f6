"""Refusal pairs: fine-tuning on harmful requests with refusals for answers.

    L = mean −log p(refusal | malicious request) + b · mean −log p(own answer | benign request)

over the tokens of answers, descended by low-rank additions to every linear map of the decoder.

CARE (Fu et al. 2026, arXiv 2603.27240) compares with "Refusal Pairs" and prints no formula for it.
Read here as what alignment by examples does (safety fine-tuning on pairs: Bianchi et al. 2024,
arXiv 2309.07875; with pictures Zong et al. 2024, arXiv 2402.02207, both of which mix in harmless
instructions, as b does). Read as a steering vector between refusing and complying answers it is
`difference-of-means`.

What had to be chosen: refusals are the model's own, given to other requests in turn, and what it
refuses already is kept; b = 1; rank 16, α = 16, 150 steps of 8 pairs and 8 benign requests at a
rate of 1e-4, as `circuit-breakers` has them but for the batch. The end of an answer isn't trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from care.data.example import Example, Suite
from care.defenses.base import register
from care.defenses.cost import Cost
from care.defenses.likelihood import logprobs
from care.defenses.low_rank import LowRank, adapters, batches, descend
from care.defenses.material import Answered, Material, gather
from care.defenses.steering import at_least
from care.defenses.stored import fitted_on
from care.models.vlm import VLM


@register("refusal-pairs")
@dataclass(frozen=True, eq=False, kw_only=True)
class RefusalPairs(LowRank):
    """Weights are trained to refuse attacks that worked, and to answer others as before."""

    paper: ClassVar[str] = "compared with in Fu et al. 2026, 2603.27240"
    cost: ClassVar[Cost] = Cost(
        trains=True, needs=("attacks that worked", "refusals", "benign requests")
    )
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rate": (5e-5, 1e-4, 3e-4),
        "steps": (50, 150),
        "kept": (0.0, 1.0),
    }

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        *,
        material: Material | None = None,
        rank: int = 16,
        alpha: float = 16.0,
        steps: int = 150,
        rate: float = 1e-4,
        kept: float = 1.0,
        batch_size: int = 8,
        seed: int = 0,
        strength: float = 1.0,
    ) -> Self:
        """Train on requests; `material` is what they were answered, where that is known, and
        `kept` is b."""
        material = material or gather(vlm, list(attacks), list(benign))
        malicious = [example for example, _ in material.complied]
        pairs = _said(vlm, [*zip(malicious, material.refusing, strict=True), *material.refused])
        others = _said(vlm, material.answered)
        at_least(1, pairs, "malicious requests with a refusal")
        at_least(1, others, "benign requests with an answer")
        drawn = [batches(pairs, batch_size, [seed, 0]), batches(others, batch_size, [seed, 1])]

        def loss(step: int) -> Tensor:
            found = surprise(vlm, next(drawn[0]))
            if kept:
                found = found + kept * surprise(vlm, next(drawn[1]))
            return found

        with adapters(vlm, range(vlm.anatomy.n_layers), rank, alpha, seed) as trained:
            descend(trained, steps, rate, loss)
            fields = trained.fields()
        manifest = fitted_on(vlm, [*attacks, *benign])
        return cls(**fields, strength=strength, manifest=manifest)


def surprise(vlm: VLM, pairs: Sequence[Answered]) -> Tensor:
    """Mean −log p of a token of the answers, in nats; differentiable."""
    found, counts = logprobs(vlm, [e for e, _ in pairs], [answer for _, answer in pairs])
    return -found.sum() / counts.sum()


def _said(vlm: VLM, pairs: Sequence[Answered]) -> list[Answered]:
    """Those whose answers aren't empty."""
    return [(example, answer) for example, answer in pairs if vlm.response_ids(answer)]
