"""Caches: found under any name, asked how much they hold, and refused where they don't say."""

import inspect
import sys
from copy import copy
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from care.errors import SiteError
from care.models.caches import NAMES, cache_argument, cached_positions, caches_in, may_hold_state
from care.models.hooks import edit
from care.models.roomy_layers import ROOM, RoomyLayer
from care.models.vlm import VLM
from kit import tiny
from kit.passes import EXAMPLES, SITE, STEPS, WOOD, by_hand, generated, models, never, repair, vlm  # noqa: F401


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_passed_under_the_name_that_the_model_takes(name):
    """Another name is an error, as it will be for the older one."""
    model, processor = tiny.tiny_llava(3)
    family, own = type(model), cache_argument(model)
    expected = VLM(model, processor).generate(EXAMPLES, max_new_tokens=STEPS)

    def forward(self, input_ids=None, attention_mask=None, logits_to_keep=0, **others):
        assert others.keys() & set(NAMES) <= {name}
        others = {own if key == name else key: value for key, value in others.items()}
        common = {"attention_mask": attention_mask, "logits_to_keep": logits_to_keep}
        return family.forward(self, input_ids, **common, **others)

    taken = list(inspect.signature(forward).parameters.values())
    cache = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = inspect.Signature([*taken[:-1], cache, taken[-1]])
    model.__class__ = type("Named", (family,), {"forward": forward})
    vlm = VLM(model, processor)
    assert cache_argument(model) == name
    assert vlm.generate(EXAMPLES, max_new_tokens=STEPS) == expected
    assert vlm.generate(vlm.prefill(EXAMPLES), max_new_tokens=STEPS) == expected


class Box:
    """Holds a cache and says nothing about it."""

    def __init__(self, cache):
        self.cache = cache


def renamed(keeps=None):
    """A LLaVA that takes its cache as `memory`: plain, in a box, or (None) holds it itself."""
    model, processor = tiny.tiny_llava(3)
    family, name = type(model), cache_argument(model)

    class Renamed(family):
        held = None

        def forward(self, input_ids=None, memory=None, **others):
            if keeps == "itself":
                self.held = self.held or memory
                memory = self.held
            cache = memory.cache if isinstance(memory, Box) else memory
            return family.forward(self, input_ids, **{name: cache}, **others)

    model.__class__ = Renamed
    return VLM(model, processor, "renamed")


@pytest.mark.parametrize("keeps", [None, "box"])
def test_a_cache_under_another_name_is_found(keeps):
    vlm = renamed()
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    for scopes, count in ((("decision",), 3), (("response",), 3 * (STEPS - 1))):
        given = DynamicCache(config=vlm.model.config.get_text_config())
        with repair(*scopes).applied(vlm) as stats:
            by_hand(vlm, EXAMPLES, name="memory", cache=Box(given) if keeps == "box" else given)
        assert stats.tokens == count
    assert caches_in([1, {"a": {"b": [cache]}}, torch.zeros(2), None]) == [cache]


def test_a_cache_that_the_model_holds_itself_is_found():
    vlm = renamed("itself")
    ids = vlm.batch(WOOD).inputs["input_ids"]
    vlm.model.held = DynamicCache(config=vlm.model.config.get_text_config())
    with torch.no_grad(), repair("decision").applied(vlm) as stats:
        vlm.model(ids)
        vlm.model(ids[:, :1])
        assert stats.tokens == 1
    with torch.no_grad(), edit(vlm, {SITE: never}), pytest.raises(SiteError, match="after 9"):
        vlm.model(ids[:, :2])


class Mute(DynamicCache):
    """A cache that doesn't say how much it holds."""

    def get_seq_length(self, layer_idx=0):
        if sys._getframe(1).f_code.co_filename.endswith("caches.py"):
            raise ValueError("no layer has a length")
        return super().get_seq_length(layer_idx)


def test_a_cache_that_says_nothing_is_refused(vlm):
    cache = Mute(config=vlm.model.config.get_text_config())
    assert cached_positions([cache]) is None
    with pytest.raises(SiteError, match="how many positions"), edit(vlm, {SITE: never}):
        by_hand(vlm, EXAMPLES, cache=cache)
    # `generate` says how long the prompt is, and that suffices as long as nothing is guessed.
    with repair("decision").applied(vlm) as stats:
        generated(vlm, EXAMPLES, **{cache_argument(vlm.model): Mute()})
    assert stats.tokens == 3
    with pytest.raises(SiteError, match="candidate"), edit(vlm, {SITE: lambda h, roles: h}):
        options = {cache_argument(vlm.model): Mute(), "prompt_lookup_num_tokens": 4}
        generated(vlm, steps=24, **options)


def test_what_the_model_is_told_must_agree(vlm):
    """An empty cache where positions or the mask tell of earlier tokens is no prompt."""
    ids = vlm.batch(WOOD).inputs["input_ids"]
    for told in (
        {"position_ids": torch.arange(7, 15)[None]},
        {"attention_mask": torch.ones(1, 12, dtype=torch.long)},
        {"position_ids": torch.arange(7, 15)[None], "use_cache": False},
    ):
        with pytest.raises(SiteError, match="known_roles"), edit(vlm, {SITE: never}):
            vlm.model(ids, **told)
    cache = StaticCache(vlm.model.config.get_text_config(), max_cache_len=48)
    cache.get_seq_length = lambda layer_idx=0: 48  # its size, not what it holds
    with pytest.raises(SiteError, match="after 48"), edit(vlm, {SITE: never}):
        vlm.model(ids, **{cache_argument(vlm.model): cache})


def test_lengths_of_caches():
    class Length:
        def __init__(self, length):
            self.get_seq_length = lambda: length

    assert cached_positions([Length(3), Length(torch.tensor(3))]) == 3
    assert cached_positions([Length(3), Length(0)]) is None
    assert cached_positions([Length(None)]) is None
    assert not may_hold_state([1, "a", None, torch.ones(1), torch.float32, {"a": [torch.ones(1)]}])
    pair = (torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    assert may_hold_state([object()]) and may_hold_state([(pair, pair)])


def test_the_name_of_the_argument():
    class Model:
        def __init__(self, forward):
            self.forward = forward

    assert cache_argument(Model(lambda ids, cache=None: None)) == "cache"
    assert cache_argument(Model(lambda ids, past_key_values=None: None)) == "past_key_values"
    assert cache_argument(Model(lambda **anything: None)) == cache_argument(tiny.tiny_llama())


def test_layers_grow_in_place_and_hold_what_the_librarys_would():
    """After rows are dropped, positions cut off, and more room is needed than there is."""
    generator = torch.Generator().manual_seed(0)

    def more(rows, positions):
        return [torch.randn(rows, 2, positions, 4, generator=generator) for _ in range(2)]

    ours, library = RoomyLayer(), DynamicLayer()
    where = []
    with torch.no_grad():
        for rows, positions in [(3, 5), (3, 1), (3, 1), (2, 1), (2, 2), (2, ROOM), (2, 1), (2, 1)]:
            if len(where) == 3:
                for layer in (ours, library):
                    layer.batch_select_indices(torch.tensor([2, 0]))
            if len(where) == 7:
                for layer in (ours, library):
                    layer.crop(-2)
            new = more(rows, positions)
            for found, expected in zip(ours.update(*new), library.update(*new), strict=True):
                assert torch.equal(found, expected)
            assert ours.get_seq_length() == library.get_seq_length()
            where.append(ours.keys.data_ptr())
    same = [one == other for one, other in pairwise(where)]
    assert same == [False, True, False, True, False, True, True]


def test_copies_of_a_layer_never_write_into_each_other():
    first, one, other = torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2)
    layer = RoomyLayer()
    with torch.no_grad():
        layer.update(first, first)
        layer.update(one, one)
        copies = [copy(layer) for _ in range(2)]
        assert all(each.keys is layer.keys for each in copies)
        for each, new in zip([*copies, layer], [one, other.float(), 3 * one], strict=True):
            each.update(new, new)
    assert [each.keys.flatten().tolist()[2:] for each in (*copies, layer)] == [
        [1, 1],
        [1, 2],
        [1, 3],
    ]


def test_gradients_pass_through_what_is_held():
    layer, new = RoomyLayer(), torch.ones(1, 1, 1, 1, requires_grad=True)
    for _ in range(3):
        layer.update(new, new)
    layer.keys.sum().backward()
    assert new.grad is not None and new.grad.item() == 3
