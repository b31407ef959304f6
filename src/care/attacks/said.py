"""A gradient to the picture through what is said: soft tokens, straight-through.

Monitors of answers read text, and an argmax has no gradient. A surrogate has: at each step the
requests beside the picture are answered greedily, y, and with p_t the probabilities that the model
gives after y_<t, and E its embeddings,

    e_t = E_{y_t} + (p_t − sg(p_t)) E,    sg: no gradient through it

stands for the answer's token t in what a monitor reads. Forwards that is the answer itself, to the
bit; backwards each token pulls on its probabilities (Bengio et al. 2013, arXiv 1308.3432). Added to
the loss is `weight` times the mean over requests, summed over the monitors, of

    max(s − threshold + 0.05, 0)

with the answer read once, at its end; of several attempts the picture is kept that has the least
sum of both. Where a tokenizer cuts the answer otherwise when it is read
again, it has no gradient; nor has a monitor without a detector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from care.attacks.loss import Objective, Term
from care.attacks.missed import Missed
from care.attacks.pictures import Wish
from care.attacks.preprocessing import to_picture
from care.attacks.watched import above, of_answers, pooled
from care.data.example import Example
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange, encoded, readable
from care.models.batches import Batch
from care.models.hooks import read
from care.runs.settings import require

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.vlm import VLM


@dataclass(frozen=True)
class SoftTokens(Missed):
    """As `missed`, and the descent sees what monitors make of the greedy answer (soft tokens)."""

    name: ClassVar[str] = "said"
    source: ClassVar[str] = "this project; straight-through: Bengio et al. 2013"

    n: int = 1
    weight: float = 1.0
    """Of what the monitors make of the answer, in nats a token for each unit of score."""
    length: int = 24
    """Tokens of the answers that they are shown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {"weight": 0, "length": 1}, {"weight": 1e6, "length": 1024})

    @property
    def passes(self) -> int:
        """Beside the descent's own, the answer, and the monitors' readings there and back."""
        return 4 * super().passes

    def term(self, vlm: VLM, defense: Defense | None, wish: Wish) -> Any:
        """The monitors' scores of the greedy answers, where there are monitors."""
        monitors = [monitor for monitor in of_answers(defense) if monitor.site is not None]
        return partial(self._term, monitors, wish.examples) if monitors else None

    def _term(
        self, monitors: Sequence[Monitor], examples: Sequence[Example], objective: Objective
    ) -> Term:
        def term(rows: Sequence[int], pixels: Tensor, features: Tensor) -> Tensor | None:
            shown = [examples[row] for row in rows]
            image = to_picture(pixels.detach() * 255)
            shown = [replace(example, images=(image,)) for example in shown]
            vlm = objective.vlm
            answers = vlm.answers(shown, max_new_tokens=self.length, batch_size=len(shown))
            said = [
                (example, answer.text)
                for example, answer in zip(shown, answers, strict=True)
                if answer.text.strip()
            ]
            if not said:
                return None
            return self.weight * excess(objective, monitors, said, features)

        return term


def excess(
    objective: Objective,
    monitors: Sequence[Monitor],
    said: Sequence[tuple[Example, str]],
    features: Tensor,
) -> Tensor:
    """What the monitors' scores of answers exceed their thresholds by; differentiable."""
    vlm = objective.vlm
    examples, texts = [example for example, _ in said], [text for _, text in said]
    answered = Objective(vlm, objective.path, examples, texts, None)
    rows = range(len(texts))
    wanted, counts = answered.rows.answers(rows)
    wanted, counts = wanted.to(vlm.device), counts.to(vlm.device).bool()
    kept = wanted.shape[1] + 1
    logits = vlm.forward(answered.batch(rows, features), logits_to_keep=kept, grad=True)[:, :-1]
    p = logits.float().softmax(dim=-1)
    table = vlm.model.get_input_embeddings().weight
    pull = (p - p.detach()).to(table.dtype) @ table[: p.shape[-1]]
    total = torch.zeros((), device=vlm.device)
    for monitor in monitors:
        scores = list(soft_scores(vlm, monitor, said, wanted, counts, pull))
        if scores:
            total = total + above(scores, monitor.threshold).mean()
    return total


def soft_scores(
    vlm: VLM,
    monitor: Monitor,
    said: Sequence[tuple[Example, str]],
    wanted: Tensor,
    counts: Tensor,
    pull: Tensor,
) -> Iterator[Tensor]:
    """The monitor's score of each answer that can be read, at its end; differentiable.

    `wanted` are the answers' tokens (B, K), of which `counts` exist, `pull` (B, K, D) is 0 with a
    gradient.
    """
    assert monitor.site is not None and monitor.detector is not None
    found = [readable(vlm, monitor.reads, Exchange(*each)) for each in said]
    places = [place for place, each in enumerate(found) if each is not None]
    if not places:
        return
    batch, counted = encoded(vlm, monitor.reads, [each for each in found if each is not None])
    inputs = dict(batch.inputs)
    ids = inputs.pop("input_ids")
    embedded = vlm.model.get_input_embeddings()(ids).clone()
    for row, place in enumerate(places):
        own, tokens = counted[row], wanted[place][counts[place]]
        if int(own.sum()) == len(tokens):  # else it is cut otherwise
            embedded[row, own] = embedded[row, own] + pull[place][counts[place]]
    seen: list[Tensor] = []
    with read(vlm, [monitor.site], sink=lambda site, h, roles: seen.append(h)):
        vlm.forward(Batch({**inputs, "inputs_embeds": embedded}, batch.roles), grad=True)
    scores = monitor.detector.of_tokens(seen[-1])
    for row in range(len(places)):
        yield pooled(scores[row][counted[row]], monitor.pooling)
