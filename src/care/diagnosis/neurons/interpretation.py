"""What a neuron does: which tokens it writes, and which tokens and image patches make it fire.

Neuron i adds a_i w_i to the residual stream, so through the final norm and the unembedding

    logits ≈ W_U norm(w_i)

its output column w_i says which tokens it makes likelier (while a_i is positive; less likely while
it is negative). That is its direct effect alone and ignores the layers above it, so it means the
more, the later the layer. What it fires on is read off prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from care.data.example import Example
from care.diagnosis.neurons.activation_patching import check_neurons
from care.diagnosis.neurons.results import Firing, FiringPatch
from care.errors import ModelError
from care.models import blocks
from care.models.batches import Batch
from care.models.devices import device_of
from care.models.hooks import read
from care.models.sites import Neuron, Role, Site, neuron_site
from care.models.vlm import VLM


class Written(NamedTuple):
    """Tokens that a neuron writes."""

    promoted: tuple[str, ...]
    """Likeliest first, while the neuron is positive."""
    suppressed: tuple[str, ...]
    """Least likely first."""


class Fires(NamedTuple):
    """Where one neuron is most active."""

    texts: tuple[Firing, ...]
    """The prompts with the greatest |a_i| at any position, greatest first."""
    patches: tuple[FiringPatch, ...]
    """The image patches with the greatest |a_i|, at most one per prompt, greatest first."""


@torch.no_grad()
def written_tokens(vlm: VLM, neurons: Sequence[Neuron], k: int = 8) -> list[Written]:
    """The k most promoted and k most suppressed tokens of each neuron.

    Raises ModelError if the decoder has no final norm (`blocks.final_norm`).
    """
    check_neurons(vlm, neurons)
    norm = blocks.final_norm(vlm.anatomy.decoder)
    if norm is None:
        raise ModelError(
            f"{vlm.name} has no final norm of a known name in its decoder, so what its neurons "
            "write can't be read through the unembedding."
        )
    head, found = vlm.model.get_output_embeddings(), []
    for neuron in neurons:
        site = neuron_site(neuron)
        column = vlm.anatomy.output_columns(site)[:, neuron[-1]]
        after = vlm.anatomy.module(Site(site.layer, "ffn_out"))
        if after is not blocks.ffn(vlm.anatomy.layers[site.layer]):  # a norm follows the FFN
            column = after(column.to(device_of(after, vlm.model)))
        states = norm(column.to(device_of(norm, vlm.model)))
        logits = head(states.to(device_of(head, vlm.model), head.weight.dtype)).float()
        found.append(
            Written(*(_texts(vlm, logits.topk(k, largest=way).indices) for way in (True, False)))
        )
    return found


def firings(
    vlm: VLM,
    examples: Sequence[Example],
    neurons: Sequence[Neuron],
    k: int = 5,
    batch_size: int = 16,
) -> list[Fires]:
    """Where each neuron is most active in the prompts: at most k prompts and k image patches.

    Patches are left out where the grid of an image can't be told: its visual tokens are neither a
    square nor described by `image_grid_thw`, or stand in several places.
    """
    check_neurons(vlm, neurons)
    sites = list(dict.fromkeys(neuron_site(neuron) for neuron in neurons))

    def work(chunk: list[int]) -> list[tuple[list[Firing], list[FiringPatch | None]]]:
        batch = vlm.batch([examples[index] for index in chunk])
        with read(vlm, sites) as seen:
            vlm.forward(batch, logits_to_keep=1)
        values = torch.stack(
            [seen[neuron_site(each)][0][..., each[-1]].float().cpu() for each in neurons], 1
        )
        return [
            _strongest(vlm, batch, row, examples[index], values[row])
            for row, index in enumerate(chunk)
        ]

    rows = vlm.in_batches(list(examples), batch_size, work)
    found = []
    for place in range(len(neurons)):
        texts = [texts[place] for texts, _ in rows]
        patches = [patch for _, each in rows if (patch := each[place]) is not None]
        found.append(Fires(tuple(_top(texts, k)), tuple(_top(patches, k))))
    return found


def _strongest(
    vlm: VLM, batch: Batch, row: int, example: Example, values: Tensor
) -> tuple[list[Firing], list[FiringPatch | None]]:
    """Of values (M, T) of one prompt, each neuron's strongest position and strongest patch."""
    roles = batch.roles[row].cpu()
    size = values.abs()
    best = size.masked_fill(roles == Role.PAD, -1.0).argmax(1)
    ids = batch.inputs["input_ids"][row]
    texts = [
        Firing(example.id, vlm.tokenizer.decode([int(ids[at])]), float(own[at]))
        for own, at in zip(values, best.tolist(), strict=True)
    ]
    places = patch_places(batch, row, len(example.images))
    if not places:
        return texts, [None] * len(values)
    visual = (roles == Role.IMAGE).nonzero()[:, 0]
    found: list[FiringPatch | None] = []
    for own, at in zip(values, size[:, visual].argmax(1).tolist(), strict=True):
        image, high, wide = places[at]
        found.append(FiringPatch(example.id, image, high, wide, float(own[visual[at]])))
    return texts, found


def patch_places(batch: Batch, row: int, images: int) -> list[tuple[int, int, int]]:
    """(image, row, column) of every visual token of one prompt, in order; empty if unknown."""
    visual = (batch.roles[row] == Role.IMAGE).int().tolist()
    total = sum(visual)
    if not images or not total:
        return []
    grids = _configured_grids(batch, row, images) or _square_grids(visual, images)
    if sum(high * wide for high, wide in grids) != total:
        return []
    return [
        (image, place // wide, place % wide)
        for image, (high, wide) in enumerate(grids)
        for place in range(high * wide)
    ]


def _configured_grids(batch: Batch, row: int, images: int) -> list[tuple[int, int]]:
    """Grids after merging, from `image_grid_thw` (one line per image of the batch, in patches)."""
    lines = batch.inputs.get("image_grid_thw")
    if lines is None or len(lines) != images * len(batch):
        return []  # prompts with unequal numbers of images aren't batched together
    own = lines[row * images : (row + 1) * images]
    visual = int((batch.roles[row] == Role.IMAGE).sum())
    merge = math.isqrt(int(own.prod(1).sum()) // max(visual, 1))
    if merge < 1 or bool((own[:, 0] != 1).any()):
        return []
    return [(int(high) // merge, int(wide) // merge) for _, high, wide in own.tolist()]


def _square_grids(visual: Sequence[int], images: int) -> list[tuple[int, int]]:
    """Equal squares, if the visual tokens stand in no more runs than there are images."""
    runs = sum(now > before for now, before in zip(visual, [0, *visual], strict=False))
    each, rest = divmod(sum(visual), images)
    side = math.isqrt(each)
    fits = runs <= images and not rest and side * side == each
    return [(side, side)] * images if fits else []


def _texts(vlm: VLM, ids: Tensor) -> tuple[str, ...]:
    return tuple(vlm.tokenizer.decode([token]) for token in ids.tolist())


def _top(items: list[Any], k: int) -> list[Any]:
    return sorted(items, key=lambda item: -abs(item.activation))[:k]
