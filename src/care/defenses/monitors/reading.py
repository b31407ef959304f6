"""What monitors read: the request without its picture, the answer as text, or both as one text.

| reads | the model is given | tokens that count |
|---|---|---|
| `request` | the request, its pictures left out | all of its text |
| `answer` | the answer, as the words of a user | the answer's |
| `exchange` | the request without pictures, then the answer to it | the answer's |

A picture, and whatever else made the model say something, reach the last two through the words that
were said: text is discrete, and there is no gradient through it. Of a request the picture is no
input at all. Thoughts are read as part of the answer, their tags as words: whoever asks may have
the answer written between such tags, and what is read must be all that is shown. Not here: what is
made of the activations (`detector`, `monitor`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from care.data.example import Example
from care.defenses.monitors.results import Reads
from care.models.finite import check_logits
from care.models.hooks import read
from care.models.sites import Role, Site

if TYPE_CHECKING:
    from care.models.batches import Batch
    from care.models.vlm import VLM

Found = TypeVar("Found")

_TEMPLATES: WeakKeyDictionary[VLM, tuple[Any, tuple[int, int]]] = WeakKeyDictionary()
"""Chat template of each model that answers were read with, and its tokens before and after."""


@dataclass(frozen=True)
class Exchange:
    """A request and what was answered to it, so far."""

    request: Example
    """The request, with its pictures, which no monitor reads."""
    answer: str = ""
    """The answer so far, thoughts included."""


def readable(
    vlm: VLM, reads: Reads, exchange: Exchange, with_picture: bool = False
) -> Exchange | None:
    """The exchange as a monitor reads it: without pictures and special tokens.

    `with_picture` leaves a request its pictures, for a control. None where there is nothing to
    read: a request that is only a picture, an answer that hasn't begun.
    """
    request = exchange.request.text_alone()
    if reads == "request":
        request = replace(exchange.request, opening="") if with_picture else request
        return Exchange(request) if exchange.request.prompt.strip() else None
    answer = _plain(vlm, exchange.answer)
    if not answer:
        return None
    if reads == "answer":
        return Exchange(Example("answer", answer), answer)
    return Exchange(request, answer)


def beginning(vlm: VLM, reads: Reads, exchange: Exchange, tokens: int) -> Exchange:
    """A readable answer or exchange as it was when the answer had so many tokens."""
    text = vlm.tokenizer.decode(vlm.response_ids(exchange.answer)[:tokens]).strip()
    request = replace(exchange.request, prompt=text) if reads == "answer" else exchange.request
    return Exchange(request, text)


def tokens_read(vlm: VLM, answer: str) -> int:
    """Tokens of an answer, thoughts included, that a monitor reads."""
    shown = readable(vlm, "answer", Exchange(Example("answer", answer or " "), answer))
    return len(vlm.response_ids(shown.answer)) if shown else 0


def encoded(vlm: VLM, reads: Reads, exchanges: Sequence[Exchange]) -> tuple[Batch, Tensor]:
    """Inputs for B readable exchanges, and which of their T tokens count, (B, T) of bool."""
    requests = [each.request for each in exchanges]
    if reads == "exchange":
        batch = vlm.batch(requests, [each.answer for each in exchanges])
        return batch, batch.roles == Role.RESPONSE
    batch = vlm.batch(requests)
    return batch, _content(vlm, batch) if reads == "answer" else batch.roles == Role.TEXT


def over_batches(
    vlm: VLM,
    reads: Reads,
    exchanges: Sequence[Exchange],
    work: Callable[[Batch, Tensor], Sequence[Found]],
    batch_size: int,
) -> list[Found]:
    """`work` on readable exchanges batch by batch, as `encoded` gives them; results in order.

    What reads the same is read once: requests whose pictures are left out, answers that repeat.
    """
    distinct: dict[tuple[str, str], Exchange] = {}
    for each in exchanges:
        distinct.setdefault(_text(each), each)
    shown = list(distinct.values())

    def read(chunk: list[int]) -> Sequence[Found]:
        return work(*encoded(vlm, reads, [shown[place] for place in chunk]))

    after = [each.answer for each in shown] if reads == "exchange" else None
    found = vlm.in_batches([each.request for each in shown], batch_size, read, extra=after)
    by_text = dict(zip(distinct, found, strict=True))
    return [by_text[_text(each)] for each in exchanges]


def log_odds(vlm: VLM, logits: Tensor) -> list[float]:
    """Refusal log-odds of B texts that were read, from logits (B, …, vocabulary) at their ends.

    Raises NotFiniteError.
    """
    logits = logits[:, -1]
    check_logits(logits, vlm.name)
    return vlm.log_odds(logits).tolist()


@torch.no_grad()
def whole_pass(
    vlm: VLM, batch: Batch, sites: Sequence[Site]
) -> tuple[dict[Site, Tensor], list[float]]:
    """Activations (B, T, D) at each site and the refusal log-odds at the end of one whole pass.

    Raises NotFiniteError.
    """
    if not sites:
        return {}, log_odds(vlm, vlm.forward(batch, logits_to_keep=1))
    with read(vlm, sites) as recorder:
        odds = log_odds(vlm, vlm.forward(batch, logits_to_keep=1))
    return {site: recorder[site][0] for site in sites}, odds


def _text(exchange: Exchange) -> tuple[str, str]:
    """What is read of a readable exchange."""
    request = exchange.request
    shown = request.digest() if request.images else repr(request.messages())
    return shown, exchange.answer


def _content(vlm: VLM, batch: Batch) -> Tensor:
    """Which tokens are the user's own, and not the chat template's (B, T)."""
    before, after = _template(vlm)
    text = batch.roles == Role.TEXT
    place = text.long().cumsum(dim=1)
    inside = text & (place > before) & (place <= text.sum(dim=1, keepdim=True) - after)
    # A text that a tokenizer merges with the template is all that there is to read.
    return torch.where(inside.any(dim=1, keepdim=True), inside, text)


def _template(vlm: VLM) -> tuple[int, int]:
    """How many tokens the chat template puts before and after a user's text."""
    template = getattr(vlm.processor, "chat_template", None)
    known = _TEMPLATES.get(vlm)
    if known is None or known[0] != template:
        known = _TEMPLATES[vlm] = (template, _measured(vlm))
    return known[1]


def _measured(vlm: VLM) -> tuple[int, int]:
    one, other = (vlm.batch([Example("probe", text)]).inputs["input_ids"][0].tolist()
                  for text in ("a cat", "7 dogs!"))  # fmt: skip
    same = [first == second for first, second in zip(one, other, strict=False)]
    ends = [first == second for first, second in zip(one[::-1], other[::-1], strict=False)]
    return _until(same), _until(ends)


def _until(same: Sequence[bool]) -> int:
    return same.index(False) if False in same else len(same)


def _plain(vlm: VLM, text: str) -> str:
    """The text without what a tokenizer would take for a special token."""
    for token in vlm.tokenizer.all_special_tokens:
        text = text.replace(token, " ")
    return text.strip()
