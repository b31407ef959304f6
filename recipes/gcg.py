"""Suffixes by nanoGCG (Zou et al. 2023, arXiv 2307.15043), as a thin adapter.

A suffix of tokens after a text request is searched that makes the model begin with a target. What
is optimised is nanoGCG's; here are the model's own chat template and the way back to an `Example`.
The package states that it needs an older transformers than `care` does, so it isn't an extra that
pip could resolve: it is installed without its dependencies, all of which `care` brings but `tqdm`.
Its cache of the prompt's beginning needs that older version too and stays off. Text only, one
request at a time, and not through a defense: it runs the model on embeddings, where edits can't
tell which position is what.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from care.data.example import Example
from care.errors import MissingDependencyError, ModelError, UsageError
from care.models.batches import render
from care.models.gradients import differentiable
from care.models.vlm import VLM

INSTALL = "pip install --no-deps nanogcg==0.3.0 && pip install tqdm"
"""How to get the package."""

_PLACE = "{optim_str}"


@dataclass(frozen=True)
class GCGConfig:
    """How a suffix is searched; the meanings are nanoGCG's."""

    steps: int = 250
    """Rounds of the search."""

    search_width: int = 256
    """Candidates tried in each round."""

    topk: int = 256
    """Replacements considered for each token."""

    start: str = "x x x x x x x x x x x x x x x x x x x x"
    """The suffix that the search starts from; its number of tokens stays."""

    batch_size: int | None = None
    """Candidates at once; None: as many as fit."""

    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        for name in ("steps", "search_width", "topk"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.start.strip():
            raise UsageError("start is empty; pass a suffix to begin with.")


@dataclass(frozen=True)
class Suffix:
    """What the search found."""

    text: str
    """The best suffix."""

    loss: float
    """Loss of the target after it, in nats per token."""

    losses: tuple[float, ...]
    """Least loss in each round."""

    example: Example
    """The request with the suffix; its goal is the request without."""


def gcg_suffix(vlm: VLM, example: Example, target: str, config: GCGConfig | None = None) -> Suffix:
    """Search a suffix for a text request, so that the answer begins with `target`.

    Raises MissingDependencyError without nanoGCG, UsageError for a request with images or an empty
    target, ModelError while an edit is active or if the template can't take a suffix.
    """
    config = config or GCGConfig()
    if example.images:
        raise UsageError(f"Example {example.id!r} has images; nanoGCG attacks text alone.")
    if not target.strip():
        raise UsageError("The target is empty; pass the wished-for beginning of the answer.")
    if vlm.model._forward_pre_hooks:
        raise ModelError("An edit is active, through which nanoGCG can't attack; take it off.")
    nanogcg = _nanogcg()
    tokenizer = _tokenizer(vlm, example)
    settings = nanogcg.GCGConfig(
        num_steps=config.steps,
        optim_str_init=config.start,
        search_width=config.search_width,
        batch_size=config.batch_size,
        topk=config.topk,
        seed=config.seed,
        use_prefix_cache=False,
        verbosity="WARNING",
    )
    with differentiable(vlm), _deterministic_as_before(), torch.enable_grad():
        found = nanogcg.run(vlm.model, tokenizer, example.prompt, target, settings)
    text = str(found.best_string)
    attacked = replace(
        example,
        id=f"{example.id}-gcg",
        prompt=f"{example.prompt} {text}",
        goal=example.goal or example.prompt,
    )
    return Suffix(text, float(found.best_loss), tuple(map(float, found.losses)), attacked)


def _nanogcg() -> Any:
    try:
        import nanogcg  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"Suffix attacks need nanoGCG ({error}); install it with: {INSTALL}"
        ) from error
    return nanogcg


def _tokenizer(vlm: VLM, example: Example) -> Any:
    """A copy of the tokenizer whose template is this one request, as the processor writes it.

    Templates of processors take lists of images and text, which nanoGCG doesn't make.
    """
    text = render(vlm.processor, replace(example, prompt=f"{example.prompt} {_PLACE}"))
    if text.count(_PLACE) != 1 or "endraw" in text:
        raise ModelError(
            f"The chat template of {vlm.name} doesn't keep the request of example {example.id!r} "
            "in one piece, so no suffix can be put after it."
        )
    tokenizer = deepcopy(vlm.tokenizer)
    tokenizer.chat_template = "{% raw %}" + text + "{% endraw %}"
    return tokenizer


@contextmanager
def _deterministic_as_before() -> Iterator[None]:
    """Put torch's settings back, which nanoGCG changes for the whole process when seeded."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_rng_state(state)
