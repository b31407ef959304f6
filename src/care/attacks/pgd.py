"""Targeted image attacks: an image that makes a model begin answers as wished.

One image serves all requests (universal; Qi et al. 2023), of which there may be just one. The loss
L is in `care.attacks.loss`: openings of answers to requests (the jailbreak loss), or the sentences
of a corpus after an empty prompt (the toxic loss, `corpus_requests`). How it is descended, by PGD,
MI-FGSM or APGD, is in `care.attacks.optimisers`; with restarts the image is kept that has the least
of what was descended: its loss, and whatever monitors add to it.

Edits by `care.models.hooks` that are active take part, so a defended model is attacked through its
defense; but an attack should be given the defense (`through`, see `care.attacks.adaptive`), whose
gates it can then see past and whose sites it can avoid. What outside edits do isn't recorded in a
checkpoint, so resume with the same ones. Not here: suffixes, typography, black-box attacks.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from care.attacks.adaptive import Through
from care.attacks.loss import Objective, Term
from care.attacks.optimisers import (
    DescentState,
    advance,
    first_pixels,
    load,
    save,
)
from care.attacks.plateau import Plateau
from care.attacks.preprocessing import PixelPath, to_picture
from care.attacks.presets import PGDConfig
from care.data.example import Example
from care.data.images import load_image
from care.errors import UsageError
from care.models.batches import render
from care.models.gradients import differentiable
from care.models.identity import parameters_digest
from care.models.vlm import VLM

SAVE_EVERY = 25
"""Steps between two checkpoints."""

_MEASURED = 64
"""The loss of the finished image is taken over at most so many requests."""
_ROUNDING_TOLERANCE = 0.05
"""Largest change of the loss (nats a token) by rounding to 8 bits that passes without a warning."""

StepProgress = Callable[[int, float], None]
"""Called with the number of steps done (over all restarts) and the loss."""


@dataclass(frozen=True)
class AttackResult:
    """One finished adversarial image."""

    image: Image.Image
    """8-bit RGB image of the model's input size; it keeps its effect when saved without loss."""

    losses: tuple[float, ...]
    """Loss before each step, over that step's requests, in nats per token, with the evasion term
    of a `Through` if there is one; of the attempt that was kept."""

    config: PGDConfig
    """What it was made with."""

    loss: float
    """Loss of `image` itself, through the model's own processor and the whole defense, over the
    first 64 requests, without the evasion term."""

    rounding: float
    """`loss` minus the loss of the same image before it was rounded to 8 bits."""

    restart: int = 0
    """Which attempt was kept, from 0."""


def universal_image(
    vlm: VLM,
    examples: Sequence[Example],
    targets: Sequence[str],
    start: Image.Image,
    config: PGDConfig,
    *,
    through: Through | None = None,
    until: Plateau | None = None,
    term: Callable[[Objective], Term] | None = None,
    progress: StepProgress | None = None,
    checkpoint: Path | None = None,
) -> AttackResult:
    """Optimise one image so that every example is answered with the opening of its target.

    `examples` are text requests (their own images are ignored), `targets` one response opening for
    each, such as "To blow up a car, you'll need"; only its first `config.target_tokens` tokens
    count. `start` is brought to the model's input size by the model's processor. `through` attacks
    a defense; `until` ends an attempt before its last step, once its loss is flat; `term` makes
    what is added to the loss. `progress` gets the number of steps done and the loss. With
    `checkpoint` (a safetensors file; restarts get files beside it) the state is saved every
    `SAVE_EVERY` steps and on interruption, and a later call with the same arguments goes on from it
    to the same image; `config.steps` of PGD and `config.restarts` may be raised.

    Raises UsageError for no examples, unequal numbers, empty targets or a checkpoint of another
    attack, ArtefactError for a damaged checkpoint, and ModelError if the processor can't be
    differentiated through or the loss doesn't depend on the image.
    """
    how = (through, until, term, progress, checkpoint)
    with _descents(vlm, examples, targets, start, config, *how) as (objective, descend):
        results = [
            _result(objective, descend(restart), config, through, restart)
            for restart in range(config.restarts)
        ]
        best = results[0] if len(results) == 1 else _least(objective, results, through)
    _warn_of_rounding(best)
    return best


def descend_attempts(
    vlm: VLM,
    examples: Sequence[Example],
    targets: Sequence[str],
    start: Image.Image,
    config: PGDConfig,
    attempts: Collection[int],
    *,
    checkpoint: Path,
    through: Through | None = None,
    until: Plateau | None = None,
    term: Callable[[Objective], Term] | None = None,
    progress: StepProgress | None = None,
) -> None:
    """Some of the attempts of `universal_image`, by number, as far as their checkpoints.

    For what several processes make: who then calls that with the same arguments, and all the
    checkpoints at hand, gets the image that one process makes.
    """
    how = (through, until, term, progress, checkpoint)
    with _descents(vlm, examples, targets, start, config, *how) as (_, descend):
        for restart in attempts:
            descend(restart)


@contextmanager
def _descents(
    vlm: VLM,
    examples: Sequence[Example],
    targets: Sequence[str],
    start: Image.Image,
    config: PGDConfig,
    through: Through | None,
    until: Plateau | None,
    term: Callable[[Objective], Term] | None,
    progress: StepProgress | None,
    checkpoint: Path | None,
) -> Iterator[tuple[Objective, Callable[[int], DescentState]]]:
    """What is descended, and the attempt of a number, from its checkpoint on."""
    examples, targets = list(examples), list(targets)
    _check_request(examples, targets)
    path, levels = PixelPath.of(vlm, start)
    examples = [replace(example, images=(to_picture(levels),)) for example in examples]
    with differentiable(vlm), torch.enable_grad():
        objective = _objective(vlm, path, levels, examples, targets, config, through)
        objective.term = _together(
            None if through is None else through.term(objective),
            None if term is None else term(objective),
        )
        digest = ""
        if checkpoint is not None:
            digest = _digest(vlm, examples, targets, levels, config, through)

        def descend(restart: int) -> DescentState:
            told = f"{digest}/{restart}"
            file = None if checkpoint is None else _file_of(Path(checkpoint), restart)
            state = _begin(file, told, levels.to(vlm.device), config, restart)
            return _descend(objective, levels, state, config, through, until, progress, file, told)

        yield objective, descend


def corpus_requests(corpus: Sequence[str]) -> tuple[list[Example], list[str]]:
    """Requests and targets of the toxic loss: every sentence as an answer to an empty prompt.

    The caller brings the sentences; none are shipped. Use `target_tokens=None`, so that whole
    sentences count. Raises UsageError if there are none.
    """
    sentences = [text.strip() for text in corpus if text.strip()]
    if not sentences:
        raise UsageError("The corpus holds no sentences; pass at least one.")
    blank = Image.new("RGB", (8, 8))  # a request isn't empty if it has an image; it is replaced
    return [Example(f"corpus-{i}", "", (blank,)) for i in range(len(sentences))], sentences


@torch.no_grad()
def image_loss(
    vlm: VLM,
    examples: Sequence[Example],
    targets: Sequence[str],
    image: Image.Image,
    config: PGDConfig,
    through: Through | None = None,
) -> float:
    """Loss (nats per token) of a finished image over the first 64 requests, defended or not.

    Prompts are read as the attack reads them: in half precision another order of the same sums is
    another loss.
    """
    examples, targets = examples[:_MEASURED], targets[:_MEASURED]
    path, levels = PixelPath.of(vlm, image)
    examples = [replace(example, images=(to_picture(levels),)) for example in examples]
    with differentiable(vlm):
        objective = _objective(vlm, path, levels, examples, targets, config, through)
        with nullcontext() if through is None else through.measured(vlm):
            return objective.loss(path.process(image), range(len(examples)), config.batch)


def _objective(
    vlm: VLM,
    path: PixelPath,
    levels: Tensor,
    examples: Sequence[Example],
    targets: Sequence[str],
    config: PGDConfig,
    through: Through | None,
) -> Objective:
    """The loss of the requests, verified; before the defense is put on."""
    objective = Objective(vlm, path, examples, targets, config.target_tokens)
    objective.verify(examples[0], levels)
    # Only of the defense it is known what it edits, not of what else may be active.
    alone = not vlm.model._forward_pre_hooks
    objective.decision_only = through is not None and through.decision_only and alone
    return objective


# -- the descent -----------------------------------------------------------------------------------


def _together(*terms: Term | None) -> Term | None:
    """The sum of terms, of which any may be missing."""
    given = [term for term in terms if term is not None]
    if len(given) < 2:
        return given[0] if given else None

    def term(rows: Sequence[int], pixels: Tensor, features: Tensor) -> Tensor | None:
        found = [each(rows, pixels, features) for each in given]
        known = [each for each in found if each is not None]
        return torch.stack(known).sum() if known else None

    return term


def _file_of(checkpoint: Path, restart: int) -> Path:
    if restart == 0:
        return checkpoint
    return checkpoint.with_name(f"{checkpoint.stem}-{restart}{checkpoint.suffix}")


def _begin(
    file: Path | None, digest: str, levels: Tensor, config: PGDConfig, restart: int
) -> DescentState:
    first = DescentState.at(first_pixels(levels, config, restart))
    return first if file is None else load(file, digest, first, config)


def _descend(
    objective: Objective,
    levels: Tensor,
    state: DescentState,
    config: PGDConfig,
    through: Through | None,
    until: Plateau | None,
    progress: StepProgress | None,
    checkpoint: Path | None,
    digest: str,
) -> DescentState:
    levels = levels.to(state.pixels.device)
    low, high = ((levels + shift).clamp(0, 255) / 255 for shift in (-config.radius, config.radius))
    everything = list(range(len(objective)))
    restart = int(digest.rpartition("/")[2])
    saved = len(state.losses)
    try:
        with nullcontext() if through is None else through.attacked(objective.vlm) as penalty:
            objective.penalty = penalty
            while (step := len(state.losses)) < config.steps:
                if until is not None and until.reached(state.losses):
                    break
                whole = config.method == "apgd"  # compares the losses of different steps
                rows = everything if whole else rows_of_step(step, len(objective), config)
                loss, gradient = objective.gradient(state.pixels, rows, config.batch)
                state = advance(state, loss, gradient, low, high, config)
                if progress is not None:
                    progress(restart * config.steps + step + 1, loss)
                if checkpoint is not None and (step + 1) % SAVE_EVERY == 0:
                    save(checkpoint, state, digest)
                    saved = step + 1
    finally:
        objective.penalty = None
        if checkpoint is not None and len(state.losses) > saved:
            save(checkpoint, state, digest)
    return state


def rows_of_step(step: int, n: int, config: PGDConfig) -> list[int]:
    """The mini-batch of a step: consecutive pieces of one endless run of shuffled epochs."""
    size = min(config.batch, n)
    epochs: dict[int, np.ndarray] = {}
    rows = []
    for place in range(step * size, (step + 1) * size):
        epoch = place // n
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng([config.seed, epoch]).permutation(n)
        rows.append(int(epochs[epoch][place % n]))
    return rows


def _result(
    objective: Objective,
    state: DescentState,
    config: PGDConfig,
    through: Through | None,
    restart: int,
) -> AttackResult:
    """Round to 8 bits, write and read as PNG, and measure what came back, fully defended."""
    file = io.BytesIO()
    to_picture(state.best * 255).save(file, "PNG")
    image = load_image(Image.open(file), "adversarial image")
    rows = range(min(len(objective), _MEASURED))
    with nullcontext() if through is None else through.measured(objective.vlm):
        loss = objective.loss(objective.path.process(image), rows, config.batch)
        exact = objective.loss(objective.path(state.best), rows, config.batch)
    return AttackResult(image, state.losses, config, loss, loss - exact, restart)


def _least(
    objective: Objective, results: list[AttackResult], through: Through | None
) -> AttackResult:
    """The attempt whose image has the least loss with what is added to it."""
    rows = range(min(len(objective), _MEASURED))

    def descended(result: AttackResult) -> float:
        pixels = torch.from_numpy(np.array(result.image)).permute(2, 0, 1).float() / 255
        pixels = pixels.to(objective.vlm.device)
        with nullcontext() if through is None else through.measured(objective.vlm):
            return result.loss + objective.added(pixels, rows, result.config.batch)

    return min(results, key=descended)


def _warn_of_rounding(result: AttackResult) -> None:
    if abs(result.rounding) > _ROUNDING_TOLERANCE:
        warnings.warn(
            f"Rounding the adversarial image to 8 bits changed its loss by {result.rounding:+.2f} "
            f"to {result.loss:.2f} nats a token; use a step size that is a multiple of 1/255.",
            stacklevel=3,
        )


# -- checks ----------------------------------------------------------------------------------------


def _check_request(examples: list[Example], targets: list[str]) -> None:
    if not examples:
        raise UsageError("An attack needs at least one request; none were passed.")
    if len(examples) != len(targets):
        raise UsageError(
            f"{len(examples)} requests need as many targets, got {len(targets)}; pass one response "
            "opening for each."
        )


def _digest(
    vlm: VLM,
    examples: list[Example],
    targets: list[str],
    levels: Tensor,
    config: PGDConfig,
    through: Through | None,
) -> str:
    """SHA-256 of everything that decides the image, except the numbers of steps and restarts.

    The checkpoints of APGD depend on its number of steps.
    """
    open_ended = {"restarts"} if config.method == "apgd" else {"steps", "restarts"}
    settings = {key: value for key, value in asdict(config).items() if key not in open_ended}
    # As the template writes them and the tokenizer reads them: their files may change in place.
    requests = vlm.tokenizer([render(vlm.processor, example) for example in examples])["input_ids"]
    pictures = getattr(getattr(vlm.processor, "image_processor", None), "to_dict", dict)()
    defended = None if through is None else through.describe()
    told = [vlm.name, vlm.revision, str(vlm.dtype), settings, requests, targets, defended]
    told.append(json.dumps(pictures, sort_keys=True, default=str))
    told.append(parameters_digest(vlm.model))  # a name doesn't tell which weights lie there
    hasher = hashlib.sha256(json.dumps(told).encode())
    hasher.update(levels.to(torch.uint8).cpu().numpy().tobytes())
    return hasher.hexdigest()
