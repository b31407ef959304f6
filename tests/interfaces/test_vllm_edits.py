"""Edits for vLLM without vLLM: the same numbers as in transformers, which tokens, and compiled."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from care.defenses.repair.channel import RepairData
from care.defenses.repair.edit import ChannelEdit, channel_edits
from care.errors import ModelError, SiteError
from care.interfaces.vllm.layers import decoder_layers, put_on
from care.interfaces.vllm.tokens import EditedTokens, StepMask, outlives_its_prompt, scopes_of
from care.models.sites import Role, Site, roles_of_inputs
from kit import tiny
from kit.repairs import a_gate, a_nonlinear_gate, close, made, skewed, slanted

IMAGE = 7
CPU = torch.device("cpu")
SOME = (("decision",), ("decision", "response"), ("image",), ("text",), ("all",), ("response",))
FFN, OUT = Site(1, "ffn_out"), Site(1, "layer_out")


class Split(nn.Module):
    """A decoder layer as vLLM's own models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(tiny.WIDTH, tiny.WIDTH)

    def forward(self, h, residual):
        residual = h if residual is None else h + residual
        return self.mlp(torch.tanh(residual)), residual


class Whole(nn.Module):
    """A decoder layer as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Identity()
        self.mlp = nn.Linear(tiny.WIDTH, tiny.WIDTH)

    def forward(self, h):
        return h + self.mlp(torch.tanh(h))


class SplitModel(nn.Module):
    def __init__(self, count=3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Split() for _ in range(count))

    def forward(self, h):
        residual = None
        for layer in self.layers:
            h, residual = layer(h, residual)
        return h + residual


class WholeModel(nn.Module):
    def __init__(self, count=3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Whole() for _ in range(count))

    def forward(self, h):
        for layer in self.layers:
            h = layer(h)
        return h


@st.composite
def repairs(draw):
    """Channels of two kinds of sites, with scopes, gates, ranks and fusions of their own."""
    channels = []
    for site in draw(st.sampled_from([(FFN,), (OUT,), (FFN, OUT), (FFN, FFN), (OUT, OUT, FFN)])):
        seed = draw(st.integers(0, 99))
        make = draw(st.sampled_from([made, skewed, slanted]))
        gate = draw(st.sampled_from([None, a_gate, a_nonlinear_gate]))
        channels.append(
            make(
                site=site,
                rank=draw(st.integers(1, 5)),
                seed=seed,
                scopes=draw(st.sampled_from(SOME)),
                strength=draw(st.sampled_from([0.5, 1.0, 3.0])),
                gate=gate and gate(2, seed),
            )
        )
    fusion = draw(st.sampled_from(["adaptive", "constant", "sum", "none"]))
    return RepairData(tuple(channels), fusion)


def requests(seed, scopes):
    """Three requests with pictures, and how far each of their sequences goes."""
    rng = np.random.default_rng(seed)
    prompts = [rng.choice([1, 2, IMAGE], size=rng.integers(1, 6)).tolist() for _ in range(3)]
    ends = [len(prompt) + int(rng.integers(0, 4)) for prompt in prompts]
    return prompts, ends, [EditedTokens.of(prompt, scopes, IMAGE) for prompt in prompts]


def expected(repair, h, prompts, ends, layers, whole=True):
    """The residual stream (T, D) of a step, edited by `ChannelEdit` one request at a time."""
    edits, place, found = channel_edits(repair, ChannelEdit), 0, []
    for prompt, end in zip(prompts, ends, strict=True):
        ids = torch.tensor([prompt + [1] * (end - len(prompt))])
        roles = roles_of_inputs(ids, None, IMAGE, prompt=len(prompt))
        row = h[None, place : place + end]
        for index, layer in enumerate(layers):
            f = nn.functional.linear(torch.tanh(row), layer.mlp.weight, layer.mlp.bias)
            if edit := edits.get(Site(index, "ffn_out")):
                f = edit(f, roles)
            row = row + f
            if edit := edits.get(Site(index, "layer_out")):
                row = edit(row, roles)
        found.append(row[0])
        place += end
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("native", [True, False])
@given(repair=repairs(), seed=st.integers(0, 999))
def test_a_step_is_edited_as_in_transformers(native, repair, seed):
    model = SplitModel() if native else WholeModel()
    scopes = scopes_of(repair.channels)
    prompts, ends, rows = requests(seed, scopes)
    mask = StepMask(scopes, 40, CPU)
    put_on(model.layers, repair, native=native, device=CPU, dtype=torch.float32, mask=mask)
    length = sum(ends) + 2  # two positions of padding
    mask.write(rows, [0] * 3, ends, length)
    h = torch.randn(length, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
    found = model(h) if native else model(h[None])[0]
    wanted = expected(repair, h, prompts, ends, model.layers)
    close(found[: sum(ends)], wanted.double(), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("native", [True, False])
def test_nothing_in_the_mask_leaves_every_bit(native):
    model = SplitModel() if native else WholeModel()
    h = torch.randn(6, tiny.WIDTH)
    before = model(h)
    repair = RepairData((made(site=FFN), made(site=OUT, gate=a_gate())))
    mask = StepMask([("all",)], 40, CPU)
    put_on(model.layers, repair, native=native, device=CPU, dtype=torch.float32, mask=mask)
    assert torch.equal(model(h), before)
    mask.write([EditedTokens.of([1, 1], [("all",)], None)], [0], [2], 6)
    after = model(h)
    assert torch.equal(after[2:], before[2:]) and not torch.allclose(after[:2], before[:2])
    mask.clear(6)
    assert torch.equal(model(h), before)


@torch.no_grad()
@pytest.mark.parametrize("native", [True, False])
def test_it_compiles_whole_and_once_for_every_step(native):
    torch._dynamo.reset()
    model = SplitModel() if native else WholeModel()
    scopes = (("decision",), ("response",))
    channels = (
        made(site=FFN, scopes=scopes[0], gate=a_gate()),
        made(site=FFN, scopes=scopes[1], seed=1, gate=a_nonlinear_gate()),
        made(site=OUT, scopes=scopes[0], seed=2),
    )
    mask = StepMask(scopes, 64, CPU)
    put_on(
        model.layers,
        RepairData(channels),
        native=native,
        device=CPU,
        dtype=torch.float32,
        mask=mask,
    )
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for seed, length in enumerate((7, 12, 3, 30)):
        rows = [EditedTokens.of([1] * (length - 2), scopes, None)]
        mask.write(rows, [0], [length], length)
        h = torch.randn(length, tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
        close(compiled(h), model(h).double(), 1e-5)
        mask.clear(length)
        assert not torch.allclose(compiled(h), expected_on(mask, rows, length, model, h))
    assert len(traced) == 1


def expected_on(mask, rows, length, model, h):
    mask.write(rows, [0], [length], length)
    return model(h)


@given(st.integers(0, 999), st.integers(0, 10_000))
def test_pieces_of_a_request_are_those_of_the_whole(seed, cuts):
    rng = np.random.default_rng(cuts)
    prompts, ends, rows = requests(seed, SOME)
    for prompt, end, row in zip(prompts, ends, rows, strict=True):
        whole = StepMask(SOME, 20, CPU)
        whole.write([row], [0], [end], end)
        inner = sorted(set(rng.integers(0, end + 1, 2).tolist()) | {0, end})
        parts = []
        for first, last in pairwise(inner):
            step = StepMask(SOME, 20, CPU)
            step.write([row], [first], [last - first], last - first)
            parts.append(step.buffer[: last - first])
        assert torch.equal(torch.cat(parts), whole.buffer[:end])
        decision = whole.buffer[:end, 0].nonzero().flatten().tolist()
        assert decision == [len(prompt) - 1]
        response = whole.buffer[:end, SOME.index(("response",))].nonzero().flatten().tolist()
        assert response == list(range(len(prompt), end))
        image = whole.buffer[:end, SOME.index(("image",))].nonzero().flatten().tolist()
        assert image == [place for place, token in enumerate(prompt) if token == IMAGE]


def test_a_request_that_is_off_isnt_edited_and_a_shorter_step_leaves_nothing_behind():
    on, off = (EditedTokens.of([1, IMAGE, 1], SOME, IMAGE, off=each) for each in (False, True))
    mask = StepMask(SOME, 16, CPU)
    mask.write([off, on], [0, 0], [5, 4], 10)
    assert not mask.buffer[:5].any() and mask.buffer[5:9].any() and not mask.buffer[9:].any()
    mask.write([on], [3], [1], 2)
    assert mask.buffer[0].tolist() == [False, True, False, False, True, True]
    assert not mask.buffer[1].any()


@pytest.mark.parametrize(
    ("scopes", "cached"),
    [
        (("all",), True),
        (("image",), True),
        (("text", "response"), True),
        (("image", "text", "response", "decision"), True),
        (("decision",), False),
        (("response",), False),
        (("text",), False),
        (("image", "decision"), False),
        (("decision", "response"), False),
    ],
)
def test_a_prefix_is_kept_only_where_a_longer_prompt_edits_it_alike(scopes, cached):
    assert outlives_its_prompt(scopes) == cached
    first = [1, IMAGE, 1]
    answered = EditedTokens.of(first, [scopes], IMAGE).between(0, 5)
    longer = EditedTokens.of([*first, 1, 1, 1], [scopes], IMAGE).between(0, 5)
    assert np.array_equal(answered, longer) == cached


def test_layers_that_give_something_else_are_an_error():
    repair = RepairData((made(site=FFN),))
    whole, split = WholeModel(), SplitModel()
    how = {"device": CPU, "dtype": torch.float32, "mask": None}
    put_on(whole.layers, repair, native=True, **how)
    with pytest.raises(SiteError, match="with --model-impl transformers"):
        whole(torch.randn(2, tiny.WIDTH))
    put_on(split.layers, RepairData((made(site=OUT),)), native=False, **how)
    with pytest.raises(SiteError, match=r"module of 1\.layer_out gives a tuple"):
        split(torch.randn(2, tiny.WIDTH))
    with pytest.raises(SiteError, match="edited already"):
        put_on(whole.layers, repair, native=True, **how)
    nothing = RepairData((replace(made(site=FFN), strength=0.0),))
    with pytest.raises(SiteError, match="all its channels have strength 0"):
        put_on(SplitModel().layers, nothing, native=True, **how)


def test_no_parameter_is_added_or_renamed():
    model = SplitModel()
    before = list(model.state_dict())
    mask = StepMask([("all",)], 8, CPU)
    repair = RepairData((made(site=FFN), made(site=OUT)))
    sites = put_on(model.layers, repair, native=True, device=CPU, dtype=torch.float32, mask=mask)
    assert list(model.state_dict()) == before and sites == [FFN, OUT]


def test_text_layers_are_certain_or_an_error():
    model = nn.Module()
    model.model = SplitModel(3)
    assert list(decoder_layers(model, 3, "m")) == list(model.model.layers)
    with pytest.raises(ModelError, match="0 of its lists of layers have the 4 layers"):
        decoder_layers(model, 4, "m")
    model.tower = SplitModel(3)
    with pytest.raises(ModelError, match="2 of its lists of layers"):
        decoder_layers(model, 3, "m")


def test_bfloat16_is_edited_to_its_precision():
    model = SplitModel().bfloat16()
    repair = RepairData((made(site=FFN, gate=a_gate()),))
    h = torch.randn(5, tiny.WIDTH).bfloat16()
    with torch.no_grad():
        f = model.layers[1].mlp(h)
        edit = channel_edits(repair, ChannelEdit)[FFN]
        wanted = edit(f[None], torch.full((1, 5), int(Role.TEXT)))[0]
        how = {"device": CPU, "dtype": torch.bfloat16, "mask": None}
        put_on(model.layers, repair, native=True, **how)
        layer = model.layers[1]
        assert torch.equal(layer.care_edit_ffn_out(f), wanted)
