"""One step of an image attack, and the checkpoint between two.

PGD (Madry et al. 2018) and, with momentum μ, MI-FGSM (Dong et al. 2018):

    g ← μ g + ∇ₓ L / ‖∇ₓ L‖₁,    x ← Π( x − α sign g )

APGD (Croce and Hein 2020, arXiv 2003.01690), with a = 1 in the first step and 0.75 after it:

    z = Π( x_k − η sign ∇ L(x_k) ),    x_{k+1} = Π( x_k + a (z − x_k) + (1 − a) (x_k − x_{k−1}) )

At checkpoints p_j N of its N steps (p = 0, 0.22, then ever closer) η is halved and the descent goes
back to the best image so far, if fewer than 0.75 of the steps since the last checkpoint lessened
the loss, or neither η nor the least loss changed in between. Π clips to the L∞ ball and to [0, 1].
Everything about η follows from the losses alone, so that a resumed descent takes the same steps.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from care.attacks.presets import PGDConfig
from care.errors import ArtefactError, ModelError, NotFiniteError, UsageError
from care.runs.files import write_whole
from care.runs.reading import check_regular

_KEPT = 0.75
"""Weight a of the new direction in APGD, and the share ρ of steps that have to lessen the loss."""


@dataclass(frozen=True)
class DescentState:
    """Everything that a step changes; replaced whole, so an interruption can't tear it."""

    pixels: Tensor
    """Image (3, H, W) in [0, 1], float32."""

    velocity: Tensor
    """PGD: accumulated gradient; APGD: the last change of the image (3, H, W)."""

    best: Tensor
    """APGD: the image with the least loss so far; PGD: the image."""

    losses: tuple[float, ...] = ()
    """One per step done."""

    best_signs: Tensor | None = None
    """APGD: the gradient's signs at `best`, from which a halved step starts anew."""

    @classmethod
    def at(cls, pixels: Tensor) -> "DescentState":
        """Before the first step."""
        return cls(pixels, torch.zeros_like(pixels), pixels)


def first_pixels(levels: Tensor, config: PGDConfig, restart: int) -> Tensor:
    """Where attempt number `restart` starts: the picture, or whole levels anywhere in the ball."""
    if restart == 0 and not config.random_start:
        return levels / 255
    rng = np.random.default_rng([config.seed, restart, config.radius])
    if config.epsilon is None:
        drawn = rng.integers(0, 256, tuple(levels.shape))
        return torch.as_tensor(drawn, dtype=torch.float32, device=levels.device) / 255
    shift = rng.integers(-config.radius, config.radius + 1, tuple(levels.shape))
    moved = levels + torch.as_tensor(shift, dtype=torch.float32, device=levels.device)
    return moved.clamp(0, 255) / 255


def advance(
    state: DescentState, loss: float, gradient: Tensor, low: Tensor, high: Tensor, config: PGDConfig
) -> DescentState:
    """One projected sign step; ModelError if there is nothing to follow."""
    size = gradient.abs().sum()
    if not np.isfinite(loss) or not torch.isfinite(size):
        raise NotFiniteError(
            f"The loss or its gradient is not finite at step {len(state.losses) + 1} (loss "
            f"{loss}); use bfloat16 or float32."
        )
    if not size > 0:
        raise ModelError(
            "The loss doesn't depend on the image: its gradient is zero everywhere. Does an active "
            "edit block the image tokens?"
        )
    if config.method == "apgd":
        return _advance_apgd(state, loss, gradient, low, high, config)
    velocity = config.momentum * state.velocity + gradient / size
    moved = (state.pixels - config.step_size * velocity.sign()).clamp(low, high)
    return DescentState(moved, velocity, moved, (*state.losses, loss))


def _advance_apgd(
    state: DescentState, loss: float, gradient: Tensor, low: Tensor, high: Tensor, config: PGDConfig
) -> DescentState:
    losses = (*state.losses, loss)
    pixels, change, signs = state.pixels, state.velocity, gradient.sign()
    best, best_signs = state.best, state.best_signs
    if best_signs is None or loss < min(state.losses):
        best, best_signs = pixels, signs
    size, again = schedule(losses, config.steps, config.step_size)
    if again:
        pixels, change, signs = best, torch.zeros_like(change), best_signs
    towards = (pixels - size * signs).clamp(low, high)
    weight = _KEPT if len(losses) > 1 else 1.0
    moved = (pixels + weight * (towards - pixels) + (1 - weight) * change).clamp(low, high)
    return DescentState(moved, moved - pixels, best, losses, best_signs)


def checkpoints(steps: int) -> list[int]:
    """The steps ⌈p_j N⌉ at which APGD looks back, without 0."""
    found, last, now = [], 0, 22  # hundredths, which add up exactly
    while (place := -(-now * steps // 100)) < steps:
        found.append(place)
        last, now = now, now + max(now - last - 3, 6)
    return sorted(set(found))


def schedule(losses: tuple[float, ...], steps: int, first: float) -> tuple[float, bool]:
    """η of the step after `losses`, and whether it starts at the best image.

    `losses[k]` is the loss before step k; `first` is η of the first step.
    """
    size, before, again = first, 0, False
    halved, least_before = False, losses[0]
    for place in checkpoints(steps):
        if place >= len(losses):
            break
        lessened = sum(losses[k + 1] < losses[k] for k in range(before, place))
        least = min(losses[: place + 1])
        stuck = not halved and least == least_before
        halved = lessened < _KEPT * (place - before) or stuck
        size = size / 2 if halved else size
        again = halved and place == len(losses) - 1
        before, least_before = place, least
    return size, again


# -- checkpoints -----------------------------------------------------------------------------------


def save(file: Path, state: DescentState, digest: str) -> None:
    """Write a state, whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {
        "pixels": state.pixels,
        "velocity": state.velocity,
        "best": state.best,
        "losses": torch.tensor(state.losses, dtype=torch.float64),
    }
    if state.best_signs is not None:
        tensors["best_signs"] = state.best_signs
    # Cloned: safetensors refuses tensors that share memory, as `pixels` and `best` may.
    whole = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(file, to_bytes(whole, metadata={"attack": digest}))


def load(file: Path, digest: str, first: DescentState, config: PGDConfig) -> DescentState:
    """The saved state, or `first` if nothing was saved yet.

    Raises ArtefactError for a damaged file, UsageError for one of another or a longer attack.
    """
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return first
    check_regular(file, "checkpoint", error=ArtefactError)
    try:
        with safe_open(file, framework="pt") as saved:
            attack = (saved.metadata() or {}).get("attack")
            names = set(saved.keys())
            found = {name: saved.get_tensor(name) for name in names}
            pixels, velocity, best, losses = (
                found[key] for key in ("pixels", "velocity", "best", "losses")
            )
    except (SafetensorError, OSError, KeyError) as error:
        raise ArtefactError(
            f"The checkpoint {file} can't be read ({error}); delete it to begin anew."
        ) from error
    if attack != digest:
        raise UsageError(
            f"The checkpoint {file} belongs to another attack (other model, requests, targets, "
            "start image or settings); delete it or choose another path."
        )
    if len(losses) > config.steps:
        raise UsageError(
            f"The checkpoint {file} is {len(losses)} steps in, more than the {config.steps} asked "
            "for; delete it or ask for more."
        )
    device = first.pixels.device
    signs = found.get("best_signs")
    return DescentState(
        pixels.to(device),
        velocity.to(device),
        best.to(device),
        tuple(losses.tolist()),
        None if signs is None else signs.to(device),
    )
