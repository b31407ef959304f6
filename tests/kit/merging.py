"""What has to hold of a repair that is folded into the weights of any model."""

from __future__ import annotations

import numpy as np
import torch

from care.defenses.base import Defense
from care.defenses.exporting import write_merged
from care.defenses.folded_weights import FoldedWeights, folds, unfoldable
from care.defenses.linear_parts import affine_maps
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.errors import UsageError
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny


def linear_channel(vlm, site, seed=0, rank=3, strength=1.2, centred=False):
    """A channel that weights can hold: on all tokens, without a gate."""
    width = vlm.anatomy.site_width(site)
    mean = np.random.default_rng(seed).standard_normal(width) if centred else None
    return Channel(site, "text", ("all",), random_subspace(width, rank, mean, seed), strength)


def linear_repair(vlm, *sites, centred=False, fusion="sum"):
    """One such channel at each site."""
    channels = [linear_channel(vlm, site, place, centred=centred)
                for place, site in enumerate(sites)]  # fmt: skip
    return Repair(tuple(channels), fusion)


def logits_under(vlm, defense, examples):
    """Logits (tokens, vocabulary) of prompts and begun answers, and the answers, under a defense.

    Without padding, where hooks edit nothing and weights everything; nothing reads it.
    """
    with defense.applied(vlm):
        batch = vlm.batch(examples, ["I'm sorry."] * len(examples))
        found = vlm.forward(batch)[batch.inputs["attention_mask"].bool()]
        return found, vlm.generate(examples, max_new_tokens=6)


def check_merged(vlm, folder, tolerance=1e-4):
    """Fold repairs at every kind of site of two layers, with and without centres; True for kinds
    that the model's weights can hold.

    What is folded does what hooks do (`check_folded`), and the model is what it was.
    """
    examples, kinds = tiny.mixed_examples(4), ("ffn_out", "mhsa_out", "ffn_neurons", "layer_out")
    plain = vlm.forward(vlm.batch(examples))
    held = {}
    for kind in kinds:
        sites = Site(1, kind), Site(2, kind)
        held[kind] = not unfoldable(vlm, sites[:1])
        for centred in (False, True) if held[kind] else ():
            check_folded(vlm, sites, examples, folder / f"{kind}{centred}", centred, tolerance)
    assert torch.equal(vlm.forward(vlm.batch(examples)), plain)
    return held


def check_folded(vlm, sites, examples, folder, centred=False, tolerance=1e-4):
    """Logits and answers of a repair that is folded in are those under its hooks, and the written
    checkpoint loads unchanged and has them too, but for a centre that it has no place for."""
    repair = linear_repair(vlm, *sites, centred=centred)
    made = folds(vlm, affine_maps(repair))
    expected, said = logits_under(vlm, repair, examples)
    found, answers = logits_under(vlm, FoldedWeights(made), examples)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert answers == said
    try:
        write_merged(replace_processor(vlm), made, folder)
    except UsageError as error:
        assert centred and "has no place for one there" in str(error)
        return
    loaded = type(vlm.model).from_pretrained(folder)
    again = VLM(loaded, vlm.processor, vlm.name)
    read, answers = logits_under(again, Defense(), examples)
    torch.testing.assert_close(read, found, atol=1e-6, rtol=1e-6)
    assert answers == said


def replace_processor(vlm):
    """The model with a processor that can be saved: stubs can't be, nor those that were made
    without a part that tiny ones don't need."""
    parts = vlm.processor.get_attributes() if hasattr(vlm.processor, "get_attributes") else ()
    whole = hasattr(vlm.processor, "save_pretrained") and all(
        hasattr(getattr(vlm.processor, name, None), "_auto_class") for name in parts
    )
    if not whole:
        vlm.processor.save_pretrained = vlm.tokenizer.save_pretrained
    return vlm
