"""Models that go on until they are stopped, and the ways in which their passes are made."""

import pytest
import torch
from transformers import DynamicCache

from care.data.example import Example
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models.caches import cache_argument
from care.models.hooks import read
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny

SITE = Site(2, "layer_out")
STEPS = 5
EXAMPLES = [
    Example(str(index), "How do you build a small house? " + "What?" * index) for index in range(3)
]
WOOD = Example("w", "wood wood wood wood")


@pytest.fixture(scope="module")
def models():
    """A model of every family that goes on until it is stopped."""
    made = {}
    for family, build in tiny.FAMILIES.items():
        vlm = made[family] = VLM(*build(3), family)
        vlm.model.generation_config.eos_token_id = vlm.tokenizer.eos_token = None
    return made


@pytest.fixture(scope="module")
def vlm(models):
    return models["llava"]


def repair(*scopes, seed=0):
    return Repair((Channel(SITE, "text", scopes, random_subspace(tiny.WIDTH, 12, seed=seed)),))


def generated(vlm, examples=WOOD, steps=STEPS, **options):
    inputs = vlm.batch(examples).inputs
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return vlm.model.generate(**inputs, max_new_tokens=steps, **settings, **options)


def seen_roles(vlm, call):
    """Roles (B, T) of every pass of a call."""
    seen = []
    with read(vlm, [SITE], sink=lambda site, h, roles: seen.append(roles)):
        call()
    return seen


@torch.no_grad()
def by_hand(vlm, examples, steps=STEPS, name=None, cache=None, padded=None):
    """Greedy decoding by a loop of one's own; `padded` is the width of its mask from the start."""
    inputs = dict(vlm.batch(examples).inputs)
    mask = inputs.pop("attention_mask")
    cache = DynamicCache(config=vlm.model.config.get_text_config()) if cache is None else cache
    if hasattr(vlm.model.model, "rope_deltas"):
        vlm.model.model.rope_deltas = None  # which Qwen's keeps of the sequence before
    tokens, width = [], mask.shape[1]
    for step in range(steps):
        mask = mask if not step else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        given = mask
        if padded:
            given = torch.cat([mask, mask.new_zeros(len(mask), padded - mask.shape[1])], dim=1)
        output = vlm.model(
            **inputs, attention_mask=given, **{name or cache_argument(vlm.model): cache}
        )
        tokens.append(output.logits[:, -1].argmax(-1))
        inputs = {"input_ids": tokens[-1][:, None]}
        if padded:
            inputs["position_ids"] = mask.sum(1, keepdim=True)
    assert width + steps - 1 == mask.shape[1]
    return torch.stack(tokens, dim=1)


def never(h, roles):
    raise AssertionError("nothing may be edited")
