"""Whether a defense does on this machine what it says: checks of the model's own numbers.

    off is off            logits of a model that it was put on and taken off again, and of one on
                          which it is put at strength 0, are the bare model's to the bit
    batch isolation       what a request gets in a batch and alone differs by rounding
    prefill and decode    logits of an answer's tokens, made one by one with a cache, are those of
                          one pass over prompt and answer
    cost                  seconds per token of harmless answers, over the bare model's

"By rounding" is: no further than `LEEWAY` times the bare model's own difference, or what the
precision of the weights leaves where that is nothing. Differences are the greatest of log
probabilities of likely tokens, in nats. Answers that are judged are the business of `probe`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from care.data.example import Example
from care.defenses.base import Defense, answers_under
from care.defenses.repair.repair import Repair
from care.evaluation.verification import Check
from care.models.batches import Batch, encode, placed
from care.models.decoding import neutral_settings
from care.models.generations import library_generate
from care.models.vlm import VLM

LEEWAY = 3.0
"""How much further than on the bare model rounding may carry."""

_LIKELY = math.log(1e-3)
"""Log probability of a token above which it is compared: in half precision the logits of others are
far apart without meaning anything."""

_ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.15}
"""Nats that rounding alone may make of each precision's weights."""

_TOKENS = 8
"""Tokens of an answer that are decoded to be compared."""


def acting(defense: Defense) -> Defense:
    """What edits the model when the defense acts: channels wide open where monitors open them."""
    if isinstance(defense, Repair) and defense.monitors:
        return defense.opened() if defense.channels else defense
    return defense


def off_is_off(vlm: VLM, defense: Defense, examples: Sequence[Example]) -> Check:
    """Whether nothing is left of it when it is taken off, and nothing is there at strength 0."""
    batch, edits = vlm.batch(examples), acting(defense)
    before = vlm.forward(batch, logits_to_keep=1)
    with edits.applied(vlm):
        vlm.forward(batch, logits_to_keep=1)
    after = [vlm.forward(batch, logits_to_keep=1)]
    weaken: Any = getattr(edits, "with_strength", None)
    if weaken is not None:
        with weaken(0.0).applied(vlm):
            after.append(vlm.forward(batch, logits_to_keep=1))
    differ = sum(int((before != each).sum()) for each in after)
    told = "taken off, and at strength 0," if weaken else "taken off,"
    return Check(
        name="off is off",
        passed=differ == 0,
        figure=float(differ),
        sentence=f"Once it is {told} {differ} of {before.numel()} logits differ from before.",
    )


def batch_isolation(vlm: VLM, defense: Defense, examples: Sequence[Example], **how: Any) -> Check:
    """Whether what a request gets depends on which others are in its batch."""
    edits = acting(defense)

    def gap(context: AbstractContextManager[Any]) -> float:
        with context:
            together = first_tokens(vlm, examples)
            alone = torch.cat([first_tokens(vlm, [example]) for example in examples])
        return greatest_gap(together, alone)

    bare, repaired = gap(nullcontext()), gap(edits.applied(vlm))
    limit = _limit(vlm, bare)
    raised = 0
    if defense.owns_answers:
        together = defense.answer(vlm, examples, **how)
        alone = [defense.answer(vlm, [example], **how)[0] for example in examples]
        raised = sum(
            [alarm.monitor for alarm in one.alarms] != [alarm.monitor for alarm in other.alarms]
            for one, other in zip(together, alone, strict=True)
        )
    said = f" {raised} of {len(examples)} raise other alarms." if defense.owns_answers else ""
    return Check(
        name="batch isolation",
        passed=repaired <= limit and raised == 0,
        figure=repaired,
        sentence=f"First tokens of {len(examples)} requests in one batch and alone differ by "
        f"{repaired:.2g} nats (bare: {bare:.2g}; at most {limit:.2g}).{said}",
    )


def prefill_and_decode(vlm: VLM, defense: Defense, examples: Sequence[Example]) -> Check:
    """Whether an answer that is made token by token is the one that a whole pass would make."""

    def gap(context: AbstractContextManager[Any]) -> float:
        with context:
            return max(_decoded_gap(vlm, example) for example in examples)

    bare, repaired = gap(nullcontext()), gap(acting(defense).applied(vlm))
    limit = _limit(vlm, bare)
    return Check(
        name="prefill and decode",
        passed=repaired <= limit,
        figure=repaired,
        sentence=f"Logits of {_TOKENS} tokens decoded with a cache and in one pass differ by "
        f"{repaired:.2g} nats (bare: {bare:.2g}; at most {limit:.2g}).",
    )


def cost_per_token(
    vlm: VLM, defense: Defense, examples: Sequence[Example], most: float | None, **how: Any
) -> Check:
    """Time per token of answers under it over that of the bare model just before, less one."""

    def seconds(under: Defense | None) -> float:
        begun = time.perf_counter()
        answers = answers_under(under, vlm, examples, **how)
        return (time.perf_counter() - begun) / max(1, sum(each.tokens for each in answers))

    for under in (None, defense):
        seconds(under)  # what is made once isn't timed
    pairs = [(seconds(None), seconds(defense)) for _ in range(3)]
    bare, own = sorted(pairs, key=lambda pair: pair[1] / pair[0])[1]
    more = own / bare - 1
    return Check(
        name="cost per token",
        passed=None if most is None else more <= most,
        figure=more,
        sentence=f"{1e3 * own:.3g} ms a token of harmless answers instead of {1e3 * bare:.3g} "
        f"({more:+.0%}; {'no limit was given' if most is None else f'at most {most:+.0%}'}).",
    )


def first_tokens(vlm: VLM, examples: Sequence[Example]) -> Tensor:
    """Log probabilities (B, vocabulary) of the answers' first tokens, in float32 on the CPU."""
    logits = vlm.forward(vlm.batch(examples), logits_to_keep=1)[:, -1]
    return logits.float().log_softmax(-1).cpu()


def greatest_gap(one: Tensor, other: Tensor) -> float:
    """The greatest difference of two arrays of log probabilities of what either finds likely."""
    likely = torch.maximum(one, other) > _LIKELY
    return float((one - other).abs().where(likely, 0.0).max())


def _limit(vlm: VLM, bare: float) -> float:
    return max(LEEWAY * bare, _ROUNDING.get(vlm.dtype, 1e-3))


@torch.no_grad()
def _decoded_gap(vlm: VLM, example: Example) -> float:
    batch = vlm.batch([example])
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=_TOKENS,
        pad_token_id=vlm.tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with neutral_settings(vlm.model):
        made: Any = library_generate(vlm.model)(**batch.inputs, generation_config=config)
    tokens = made.sequences[0, batch.inputs["input_ids"].shape[1] :].tolist()
    encoded, roles = encode(vlm.processor, [example], [tokens], vlm.anatomy.image_token_id)
    inputs = {key: placed(value, vlm.device, vlm.dtype) for key, value in encoded.items()}
    whole = vlm.forward(Batch(inputs, roles.to(vlm.device)), logits_to_keep=len(tokens) + 1)
    step_by_step = torch.stack([logits[0] for logits in made.logits]).float().log_softmax(-1)
    in_one = whole[0, :-1].float().log_softmax(-1)
    return greatest_gap(step_by_step.cpu(), in_one.cpu())
