"""The vision tower: a DINOv2 backbone rewritten as a SigLIP vision model.

SigLIP's vision model is a plain ViT, DINOv2 differs in three ways:

* layer scales are folded into the linear map before them: λ ⊙ (W x + b) = (diag(λ) W) x + λ ⊙ b,
  which is exact;
* positions are resampled once to the grid in use, as the original graph does at every call;
* SigLIP has no class token. Patches of smooth pictures attend to it strongly, and merely dropping
  it leaves little of their features (mean cosine with the original 0.2 on flat pictures). So the
  two maps that write to the residual stream are refitted, layer by layer, such that the patches
  follow the original ones, on synthetic pictures. With the inputs A (N, d) of a map, the
  targets T and the original weights W, both centred:

      W' = argmin ‖T − A W'ᵀ‖² + λ ‖W' − W‖²,   W'ᵀ = (AᵀA + λ I)⁻¹ (AᵀT + λ Wᵀ)

No gradient step is taken and no other weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from care.models.embedded.formats import read_onnx
from care.runs.progress import Progress

PATCH_SIZE = 14
"""Side of one patch in pixels."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

N_PICTURES = 400
"""Synthetic pictures of the refit; held-out cosine saturates there."""

SEED = 1
"""Seed of the synthetic pictures."""

RIDGE = 1e-3
"""λ relative to the mean diagonal of AᵀA."""

HEAD_WIDTH = 64
"""Width of one attention head of DINOv2."""

NORM_EPS = 1e-6
"""Epsilon of DINOv2's layer norms."""

THREADS = 2
"""torch's threads during the refit, whatever the machine has: float32 sums are split among threads,
so their number is in the last bits of the weights. Those of two are what was trained on."""

_MAPS = {
    "self_attn.q_proj": ("attention/attention/query", None),
    "self_attn.k_proj": ("attention/attention/key", None),
    "self_attn.v_proj": ("attention/attention/value", None),
    "self_attn.out_proj": ("attention/output/dense", "layer_scale1"),
    "mlp.fc1": ("mlp/fc1", None),
    "mlp.fc2": ("mlp/fc2", "layer_scale2"),
}

State = dict[str, Tensor]


def convert(path: Path, grid: int) -> tuple[State, Tensor]:
    """SigLIP state dict with grid² positions, and DINOv2's class token with its position (D,).

    The state is exact but for the missing class token; see `refit`.
    """
    arrays, nodes = read_onnx(path)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    (positions,) = (t for t in tensors.values() if t.shape[:2] == (1, 1369))
    (class_position,) = (tensors[n] for n in tensors if n.startswith("onnx::Concat"))
    square = positions.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    # The graph itself resizes this way: half-pixel bicubic without antialiasing.
    resized = F.interpolate(square, (grid, grid), mode="bicubic")
    embed = "backbone.embeddings.patch_embeddings.projection"
    state = {
        "embeddings.patch_embedding.weight": tensors[f"{embed}.weight"],
        "embeddings.patch_embedding.bias": tensors[f"{embed}.bias"],
        "embeddings.position_embedding.weight": resized.flatten(2)[0].T.contiguous(),
        "post_layernorm.weight": tensors["backbone.layernorm.weight"],
        "post_layernorm.bias": tensors["backbone.layernorm.bias"],
    }
    for layer in range(sum(name.endswith(".norm1.weight") for name in tensors)):
        source, target = f"backbone.encoder.layer.{layer}", f"encoder.layers.{layer}"
        for norm in (1, 2):
            for part in ("weight", "bias"):
                state[f"{target}.layer_norm{norm}.{part}"] = tensors[f"{source}.norm{norm}.{part}"]
        for name, (route, scale_name) in _MAPS.items():
            weight = tensors[nodes[f"/backbone/encoder/layer.{layer}/{route}/MatMul"][1]].T
            bias = tensors[f"{source}.{route.replace('/', '.')}.bias"]
            if scale_name is not None:
                scale = tensors[f"{source}.{scale_name}.lambda1"]
                weight, bias = scale[:, None] * weight, scale * bias
            state[f"{target}.{name}.weight"] = weight.contiguous()
            state[f"{target}.{name}.bias"] = bias
    token = tensors["backbone.embeddings.cls_token"] + class_position
    return state, token.reshape(-1)


def _norm(h: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(
        h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=NORM_EPS
    )


def _linear(h: Tensor, state: State, name: str) -> Tensor:
    return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])


def _attend(h: Tensor, state: State, layer: str) -> Tensor:
    """Joined heads (B, T, D) before the output map."""
    normed = _norm(h, state, f"{layer}.layer_norm1")
    q, k, v = (
        _linear(normed, state, f"{layer}.self_attn.{name}")
        .unflatten(-1, (-1, HEAD_WIDTH))
        .transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)


def _neurons(h: Tensor, state: State, layer: str) -> Tensor:
    """Activated FFN neurons (B, T, F)."""
    normed = _norm(h, state, f"{layer}.layer_norm2")
    return F.gelu(_linear(normed, state, f"{layer}.mlp.fc1"))


def _embed(pixels: Tensor, state: State) -> Tensor:
    name = "embeddings.patch_embedding"
    patches = F.conv2d(pixels, state[f"{name}.weight"], state[f"{name}.bias"], stride=PATCH_SIZE)
    return patches.flatten(2).mT + state["embeddings.position_embedding.weight"]


def features(pixels: Tensor, state: State, class_token: Tensor | None = None) -> Tensor:
    """Patch features (B, V, D) of normalised pixels (B, 3, S, S).

    With DINOv2's class token this is DINOv2, without it the SigLIP model of the same state.
    """
    h = _embed(pixels, state)
    if class_token is not None:
        h = torch.cat([class_token.expand(len(h), 1, -1), h], dim=1)
    for index in range(sum(name.endswith("fc1.bias") for name in state)):
        layer = f"encoder.layers.{index}"
        h = h + _linear(_attend(h, state, layer), state, f"{layer}.self_attn.out_proj")
        h = h + _linear(_neurons(h, state, layer), state, f"{layer}.mlp.fc2")
    return _norm(h if class_token is None else h[:, 1:], state, "post_layernorm")


def _fit(inputs: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of targets on inputs towards `weight` (out, in): new weight and bias."""
    a, t = inputs.flatten(0, 1), targets.flatten(0, 1)
    a_mean, t_mean = a.mean(0), t.mean(0)
    a, t = a - a_mean, t - t_mean
    gram = (a.T @ a).double()
    ridge = RIDGE * gram.diagonal().mean()
    right = (a.T @ t).double() + ridge * weight.T.double()
    gram.diagonal().add_(ridge)
    fitted = torch.linalg.solve(gram, right).T.float().contiguous()
    return fitted, t_mean - fitted @ a_mean


@torch.no_grad()
def refit(
    state: State, class_token: Tensor, pixels: Tensor, tick: Callable[[], None] | None = None
) -> State:
    """A copy of `state` whose output maps make up for the missing class token.

    `pixels` (N, 3, S, S) are normalised pictures. Layer by layer, so that every map also corrects
    what those before it left over. `tick` is called after every layer.
    """
    fitted = dict(state)
    h = _embed(pixels, state)
    teacher = torch.cat([class_token.expand(len(h), 1, -1), h], dim=1)
    for index in range(sum(name.endswith("fc1.bias") for name in state)):
        layer = f"encoder.layers.{index}"
        for block, name in ((_attend, "self_attn.out_proj"), (_neurons, "mlp.fc2")):
            key = f"{layer}.{name}"
            teacher = teacher + _linear(block(teacher, state, layer), state, key)
            inputs = block(h, fitted, layer)
            weight, bias = _fit(inputs, teacher[:, 1:] - h, state[f"{key}.weight"])
            fitted[f"{key}.weight"], fitted[f"{key}.bias"] = weight, bias
            h = h + F.linear(inputs, weight, bias)
        if tick is not None:
            tick()
    return fitted


def synthetic_pictures(n: int, size: int, seed: int = SEED) -> Tensor:
    """Normalised pixels (n, 3, size, size): random shapes on flat, graded or noisy grounds."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([np.asarray(_picture(rng, size, flat=i % 3 == 0)) for i in range(n)])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def _picture(rng: np.random.Generator, size: int, flat: bool) -> Image.Image:
    low, high = rng.integers(0, 256, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    slope = np.clip(np.cos(angle) * x + np.sin(angle) * y, -1, 1) / 2 + 0.5
    ground = low + (high - low) * slope[..., None] * (not flat)
    ground = ground + rng.normal(0, rng.choice([0, 0, 6, 25]), (size, size, 3))
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 12)):
        left, top = (int(v) for v in rng.integers(-size // 8, size, 2))
        wide, tall = (int(v) for v in rng.integers(size // 20, size * 3 // 4, 2))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        box = (left, top, left + wide, top + tall)
        kind = rng.integers(0, 4)
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        elif kind == 2:
            corners = rng.uniform(0, 1, (int(rng.integers(3, 7)), 2))
            draw.polygon([(left + wide * u, top + tall * v) for u, v in corners], fill=colour)
        else:
            start, end = (int(v) for v in rng.integers(0, 360, 2))
            draw.arc(box, start, end, fill=colour, width=int(rng.integers(1, 8)))
    return picture


@contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tower_state(path: Path, size: int, progress: bool = False) -> State:
    """State dict of the finished SigLIP vision model for square pictures of `size` pixels."""
    state, class_token = convert(path, size // PATCH_SIZE)
    pixels = synthetic_pictures(N_PICTURES, size)
    with _fixed_threads():
        if not progress:
            return refit(state, class_token, pixels)
        layers = sum(name.endswith("fc1.bias") for name in state)
        with Progress("vision tower, layer", layers) as bar:
            return refit(state, class_token, pixels, bar.advance)
