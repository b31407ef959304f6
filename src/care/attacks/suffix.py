"""Suffixes that make a model begin its answers as wished: greedy coordinate gradient (GCG).

After Zou et al. 2023 (arXiv 2307.15043). With s the k tokens of a suffix after each of N requests
x, and y the wished openings, the loss is that of image attacks (`loss`):

    L(s) = mean over requests and their first response tokens of −log p(y_t | x, s, y_<t)

A step takes the gradient with respect to the one-hot rows of s, G = ∂L/∂e · Eᵀ (k, vocabulary) for
embeddings e and their table E; draws candidates that differ from s in one token, which is one of
the `topk` with the most negative entry of G; computes L of each; and goes to the best one. The best
suffix of all steps is kept. A candidate counts only if its text, put after the requests and read by
the tokenizer again, is made of the same tokens: what is found is text, not tokens.

It all runs through the model's own forward pass with the defense applied, so its edits take part,
gradient and all. A repair with monitors gives the bare model's answers until one raises an alarm,
so there it is the bare model's pass, and what the monitors make of request and wished answer is
added to L (`watched`). What another defense does beside its edits isn't seen. Not here: which
requests and what becomes of the suffix (`gcg`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from care.attacks.facts import SuffixState, SuffixTrace
from care.attacks.gcg import SuffixConfig
from care.attacks.watched import Watching
from care.data.digests import digest_of
from care.data.example import Example
from care.defenses.base import Defense
from care.errors import ArtefactError, ModelError, UsageError
from care.models.batches import Batch, render
from care.models.finite import check_logits
from care.models.gradients import differentiable
from care.models.identity import parameters_digest
from care.models.vlm import VLM
from care.runs.files import to_json, write_whole
from care.runs.reading import read_json
from care.typed import from_tree, to_tree

SAVE_EVERY = 5
"""Steps between two checkpoints."""

StepProgress = Callable[[int, float], None]
"""Called with the number of steps done and the least loss so far."""


@dataclass(frozen=True)
class FoundSuffix:
    """What a search found."""

    text: str
    """What is appended to a request."""

    loss: float
    """Its loss (nats a token) over the requests, under the defense."""

    losses: tuple[float, ...]
    """Loss of the suffix that each step began with."""


def search_suffix(
    vlm: VLM,
    examples: Sequence[Example],
    targets: Sequence[str],
    config: SuffixConfig,
    *,
    defense: Defense | None = None,
    progress: StepProgress | None = None,
    checkpoint: Path | None = None,
) -> FoundSuffix:
    """One suffix for all requests, of which there may be just one, under a defense or bare.

    With `checkpoint` (a JSON file) the state is saved every `SAVE_EVERY` steps and on interruption,
    and a later call with the same arguments goes on from it to the same suffix; more steps may be
    asked for. Raises UsageError for no requests, unequal numbers, empty targets or a checkpoint of
    another search, ModelError if no suffix stays the same when it is read again.
    """
    watching = Watching(defense)
    loss_of = SuffixLoss(vlm, examples, targets, config, watching)
    digest = "" if checkpoint is None else _digest(vlm, examples, targets, config, defense)
    bare = nullcontext()
    applied = bare if defense is None or defense.revises else defense.applied(vlm)
    with differentiable(vlm), applied, watching.reading(vlm) if watching else nullcontext():
        state = _read(checkpoint, digest) or _first(loss_of, config)
        saved = len(state.losses)
        try:
            for step in range(len(state.losses), config.steps):
                state = _step(loss_of, state, config, step)
                if progress is not None:
                    progress(step + 1, state.least)
                if (step + 1) % SAVE_EVERY == 0:
                    saved = _save(checkpoint, state, digest)
        finally:
            if len(state.losses) > saved:
                _save(checkpoint, state, digest)
    return FoundSuffix(loss_of.text(state.best), state.least, state.losses)


class SuffixLoss:
    """L of suffixes, given as token ids, after N requests."""

    def __init__(
        self,
        vlm: VLM,
        examples: Sequence[Example],
        targets: Sequence[str],
        config: SuffixConfig,
        watching: Watching | None = None,
    ) -> None:
        if not examples or len(examples) != len(targets):
            raise UsageError(
                f"A suffix needs requests and one target for each, got {len(examples)} and "
                f"{len(targets)}."
            )
        self.vlm, self.examples, self.rows = vlm, list(examples), config.rows
        self.targets, self.watching = list(targets), watching
        self.answers = [vlm.response_ids(text) for text in targets]
        for example, answer in zip(examples, self.answers, strict=True):
            if not answer:
                raise UsageError(f"Example {example.id!r}: its target has no tokens; write one.")

    def text(self, suffix: Sequence[int]) -> str:
        """The suffix as it is appended to a request."""
        text = self.vlm.tokenizer.decode(suffix)
        return text if text[:1].isspace() else f" {text}"

    def stays(self, suffix: Sequence[int]) -> bool:
        """Whether its text, after every request, is read as the same tokens again."""
        tokenizer = self.vlm.tokenizer
        texts = [render(self.vlm.processor, example) for example in self._with(suffix)]
        read = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return all(_place(ids, suffix) is not None for ids in read)

    @torch.no_grad()
    def of(self, suffixes: Sequence[Sequence[int]]) -> list[float]:
        """L of each suffix, at most `rows` requests with their suffixes at once."""
        pairs = [(suffix, row) for suffix in suffixes for row in range(len(self.examples))]
        totals: list[float] = []
        for begin in range(0, len(pairs), self.rows):
            chunk = pairs[begin : begin + self.rows]
            totals += self._losses(self._batch(chunk), [row for _, row in chunk], False).tolist()
        tokens = sum(map(len, self.answers))
        n = len(self.examples)
        return [sum(totals[k * n : (k + 1) * n]) / tokens for k in range(len(suffixes))]

    def gradient(self, suffix: Sequence[int]) -> Tensor:
        """∂L/∂(one-hot rows) of a suffix (k, vocabulary), float32."""
        table = self.vlm.model.get_input_embeddings().weight
        total = torch.zeros(len(suffix), table.shape[1], device=table.device)
        for begin in range(0, len(self.examples), self.rows):
            rows = list(range(begin, min(begin + self.rows, len(self.examples))))
            batch = self._batch([(suffix, row) for row in rows])
            with torch.enable_grad(), _shifted(self.vlm) as shifts:
                loss = self._losses(batch, rows, True).sum()
                (found,) = torch.autograd.grad(loss, shifts[-1])
            for place, ids in enumerate(batch.inputs["input_ids"].tolist()):
                first = _place(ids, suffix)
                assert first is not None  # it stays
                total += found[place, first : first + len(suffix)].float()
        return total @ table.detach().float().T / sum(map(len, self.answers))

    def _with(self, suffix: Sequence[int]) -> list[Example]:
        text = self.text(suffix)
        return [replace(example, prompt=example.prompt + text) for example in self.examples]

    def _batch(self, pairs: Sequence[tuple[Sequence[int], int]]) -> Batch:
        """Requests with suffixes, and their targets' tokens after them."""
        asked = [
            replace(self.examples[row], prompt=self.examples[row].prompt + self.text(suffix))
            for suffix, row in pairs
        ]
        return self.vlm.batch(asked, [self.targets[row] for _, row in pairs])

    def _losses(self, batch: Batch, rows: Sequence[int], grad: bool) -> Tensor:
        """Summed −log p (nats) of the target of each row (B,), and what is watched of it."""
        counts = torch.tensor([len(self.answers[row]) for row in rows])
        longest = int(counts.max())
        logits = self.vlm.forward(batch, logits_to_keep=longest + 1, grad=grad)[:, :-1]
        wanted = batch.inputs["input_ids"][:, -longest:].to(logits.device)
        kept = (torch.arange(longest) >= longest - counts[:, None]).to(logits.device)
        check_logits(logits, self.vlm.name, kept)
        logits = logits.float()
        chosen = logits.gather(-1, wanted[..., None]).squeeze(-1) - logits.logsumexp(-1)
        losses = -(chosen * kept).sum(dim=1)
        excess = self.watching.excess() if self.watching else None
        # Losses are divided by all tokens in the end; every request's excess counts the same.
        share = sum(map(len, self.answers)) / len(self.examples)
        return losses if excess is None else losses + share * excess


# -- the search ------------------------------------------------------------------------------------


def _first(loss_of: SuffixLoss, config: SuffixConfig) -> SuffixState:
    """The suffix that a search starts from: `length` times the same mark."""
    for mark in ("!", "x", "."):
        text = " ".join([mark] * config.length)
        for start in (f" {text}", text):
            suffix = loss_of.vlm.response_ids(start)[: config.length]
            if loss_of.stays(suffix):
                return SuffixState(suffix, suffix, loss_of.of([suffix])[0])
    raise ModelError(
        f"No suffix to start from stays the same when {loss_of.vlm.name} reads it again after the "
        "requests; its tokenizer or chat template joins them."
    )


def _step(loss_of: SuffixLoss, state: SuffixState, config: SuffixConfig, step: int) -> SuffixState:
    """To the best of the candidates that differ in one token."""
    before = state.least if state.now == state.best else loss_of.of([state.now])[0]
    rng = np.random.default_rng([config.seed, step])
    found = candidates(loss_of.gradient(state.now), state.now, usable(loss_of.vlm), config, rng)
    found = [suffix for suffix in found if loss_of.stays(suffix)]
    losses = (*state.losses, before)
    if not found:
        return replace(state, losses=losses)
    values = loss_of.of(found)
    place = int(np.argmin(values))
    if values[place] < state.least:
        return SuffixState(found[place], found[place], values[place], losses)
    return replace(state, now=found[place], losses=losses)


def candidates(
    gradient: Tensor,
    suffix: Sequence[int],
    allowed: Tensor,
    config: SuffixConfig,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Different suffixes with one token exchanged, drawn from the most promising exchanges.

    `gradient` is (k, vocabulary), `allowed` a mask (vocabulary,) of tokens to exchange for.
    """
    blocked = gradient.masked_fill(~allowed.to(gradient.device), float("inf"))
    topk = min(config.topk, int(allowed.sum()))
    best = blocked.topk(topk, dim=1, largest=False).indices.tolist()
    found: dict[tuple[int, ...], None] = {}
    for _ in range(config.width):
        place, rank = int(rng.integers(len(suffix))), int(rng.integers(topk))
        changed = list(suffix)
        changed[place] = best[place][rank]
        if changed != list(suffix):
            found[tuple(changed)] = None
    return [list(each) for each in found]


def usable(vlm: VLM) -> Tensor:
    """Mask (vocabulary,) of tokens that are printable ASCII text and nothing special."""
    rows = vlm.model.get_input_embeddings().weight.shape[0]
    texts = vlm.tokenizer.batch_decode([[place] for place in range(len(vlm.tokenizer))])
    special = set(vlm.tokenizer.all_special_ids)
    mask = torch.zeros(rows, dtype=torch.bool)
    for place, text in enumerate(texts[:rows]):
        plain = text.isascii() and text.isprintable() and bool(text.strip())
        mask[place] = plain and place not in special
    return mask


def _place(ids: Sequence[int], suffix: Sequence[int]) -> int | None:
    """Where a suffix stands in a row of tokens, the last time that it does."""
    ids, suffix = list(ids), list(suffix)
    for first in range(len(ids) - len(suffix), -1, -1):
        if ids[first : first + len(suffix)] == suffix:
            return first
    return None


@contextmanager
def _shifted(vlm: VLM) -> Iterator[list[Tensor]]:
    """Zeros that are added to the embeddings of each pass (B, T, D), to be differentiated by."""
    shifts: list[Tensor] = []

    def add(module: object, args: object, output: Tensor) -> Tensor:
        shifts.append(torch.zeros_like(output, requires_grad=True))
        return output + shifts[-1]

    handle = vlm.model.get_input_embeddings().register_forward_hook(add)
    try:
        yield shifts
    finally:
        handle.remove()


# -- checkpoints -----------------------------------------------------------------------------------


def _read(path: Path | None, digest: str) -> SuffixState | None:
    if path is None or not path.exists():
        return None
    todo = "delete it to search anew"
    tree = read_json(path, "checkpoint of a suffix", otherwise=todo, error=ArtefactError)
    found = from_tree(SuffixTrace, tree, what=str(path), todo=todo, error=ArtefactError)
    if found.digest != digest:
        raise UsageError(
            f"The checkpoint {path} is of another search (another model, defense, request or "
            "setting); choose another folder."
        )
    return found.state


def _save(path: Path | None, state: SuffixState, digest: str) -> int:
    """Write the state; the number of steps that it holds."""
    if path is not None:
        write_whole(path, to_json(to_tree(SuffixTrace(digest, state))) + "\n")
    return len(state.losses)


def _digest(
    vlm: VLM,
    examples: Sequence[Example],
    targets: Sequence[str],
    config: SuffixConfig,
    defense: Defense | None,
) -> str:
    """SHA-256 of everything that decides the suffix, except the number of steps."""
    settings = {key: value for key, value in asdict(config).items() if key != "steps"}
    asked = [example.digest() for example in examples]
    told = [vlm.name, str(vlm.dtype), settings, asked, list(targets), digest_of(defense)]
    told.append(parameters_digest(vlm.model))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
