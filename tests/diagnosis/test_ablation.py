"""Ablations against closed forms, on modules that can be computed by hand and on tiny models."""

import pytest
import torch

from care.diagnosis.ablation import ablate, first_needed
from care.errors import SiteError, UsageError
from care.models.hooks import edit, read
from care.models.sites import DECISION, N_CLASSES, Role, Site, position_classes
from care.models.vlm import VLM
from kit import tiny
from kit.tiny import captured, hooks_of

EXAMPLES = tiny.mixed_examples(5)
FFN, MHSA, LAYER, NEURONS = (
    Site(2, kind) for kind in ("ffn_out", "mhsa_out", "layer_out", "ffn_neurons")
)
LAST = Site(tiny.LAYERS - 1, "layer_out")
ADDED = (1.0, 10.0, 100.0, 1000.0)


class Adds(torch.nn.Module):
    """A sublayer whose output is known: the same number everywhere."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return torch.full_like(x, self.number)


@pytest.fixture(scope="module")
def sums():
    """A model in which layer l adds ADDED[l] to the residual stream and does nothing else."""
    vlm = tiny.tiny_vlm()
    with torch.no_grad():
        for layer, number in zip(vlm.anatomy.layers, ADDED, strict=True):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp = Adds(number)
    return vlm


def added(vlm, examples=EXAMPLES):
    """What all layers together add to the residual stream: one number for each position."""
    batch = vlm.batch(examples)
    embedded = []
    first = vlm.anatomy.layers[0]
    handle = first.register_forward_pre_hook(
        lambda module, args, kwargs: embedded.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    out = captured(vlm, batch, [LAST])[LAST]
    handle.remove()
    real = batch.roles != Role.PAD
    return (out - embedded[0])[real], batch.roles[real]


FFNS = [Site(layer, "ffn_out") for layer in range(4)]


@pytest.mark.parametrize(
    ("how", "sites", "expected"),
    [
        ("zero", [FFNS[1]], 1101),
        ("zero", FFNS[1:4], 1),
        ("skip", [Site(2, "layer_out")], 1011),
        ("skip", [Site(layer, "layer_out") for layer in (1, 2, 3)], 1),
        ("previous-layer", [FFNS[2]], 1 + 10 + 10 + 1000),
        ("previous-layer", FFNS[1:3], 1 + 1 + 1 + 1000),
        ("previous-layer", [FFNS[1], FFNS[3]], 1 + 1 + 100 + 100),
    ],
)
def test_sums_by_hand(sums, how, sites, expected):
    with ablate(sums, sites, how):
        found, _ = added(sums)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 2.0])
def test_a_scaled_ablation_goes_part_of_the_way(sums, scale):
    with ablate(sums, [FFNS[2]], "zero", scale=scale) as stats:
        found, _ = added(sums)
    torch.testing.assert_close(
        found, torch.full_like(found, 1111 - scale * 100), rtol=1e-3, atol=1e-2
    )
    assert stats.relative_norm == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("how", ["mean", "constant"])
def test_each_position_class_gets_its_own_value(sums, how):
    table = torch.arange(N_CLASSES)[:, None].expand(-1, tiny.WIDTH) * 1.0
    with ablate(sums, [FFNS[2]], how, {FFNS[2]: table}):
        found, roles = added(sums)
    batch = sums.batch(EXAMPLES)
    classes = position_classes(batch.roles)[batch.roles != Role.PAD]
    assert set(classes.tolist()) == {Role.TEXT, Role.IMAGE, DECISION}
    torch.testing.assert_close(
        found[:, 0] - 1011, classes.float(), rtol=1e-3, atol=1e-2, check_dtype=False
    )
    assert (classes == DECISION).sum() == len(EXAMPLES) and (roles[classes == DECISION] == 1).all()
    # A table without that class, or one vector: the decision is text like any other.
    for values in (table[:4].clone(), torch.ones(tiny.WIDTH)):
        with ablate(sums, [FFNS[2]], how, {FFNS[2]: values}):
            found, _ = added(sums)
        decided = found[classes == DECISION, 0]
        torch.testing.assert_close(decided, torch.full((5,), 1012.0), rtol=1e-3, atol=1e-2)


def test_zero_ablation_of_both_sublayers_is_a_skip(vlm, batch):
    """layer_out = h + 0 + 0, the same as skipping the layer."""
    before = Site(1, "layer_out")
    with ablate(vlm, [FFN, MHSA], "zero"):
        zeroed = captured(vlm, batch, [LAYER, before])
    with ablate(vlm, [LAYER], "skip") as stats:
        skipped = captured(vlm, batch, [LAYER, before])
    real = batch.roles != Role.PAD
    assert torch.equal(zeroed[LAYER][real], zeroed[before][real])
    assert torch.equal(skipped[LAYER][real], zeroed[LAYER][real])
    assert stats.tokens == int(real.sum())
    with ablate(vlm, [FFN, MHSA], "skip"):
        assert torch.equal(captured(vlm, batch, [LAYER])[LAYER][real], zeroed[LAYER][real])


def test_skipping_only_some_tokens(vlm, batch):
    before = Site(1, "layer_out")
    plain = captured(vlm, batch, [LAYER, before])
    with ablate(vlm, [LAYER], "skip", scopes=["image"]):
        skipped = captured(vlm, batch, [LAYER])[LAYER]
    image = batch.roles == Role.IMAGE
    assert torch.equal(skipped[image], plain[before][image])
    assert torch.equal(skipped[~image], plain[LAYER][~image])


def test_zeroing_neurons_removes_the_ffn(vlm, batch):
    with ablate(vlm, [NEURONS], "zero"):
        assert captured(vlm, batch, [FFN])[FFN][batch.roles != Role.PAD].abs().max() == 0


def test_mean_ablation(vlm, batch):
    vector = torch.randn(tiny.WIDTH)
    with ablate(vlm, [FFN], "mean", {FFN: vector}, scopes=["text"]):
        h = captured(vlm, batch, [FFN])[FFN]
    assert torch.equal(h[batch.roles == Role.TEXT], vector.expand_as(h)[batch.roles == Role.TEXT])
    assert not torch.equal(h[batch.roles == Role.IMAGE][0], vector)
    table = torch.randn(4, tiny.FFN)
    with ablate(vlm, [NEURONS], "mean", {NEURONS: table}):
        h = captured(vlm, batch, [NEURONS])[NEURONS]
    for role in (Role.TEXT, Role.IMAGE, Role.RESPONSE):
        assert (h[batch.roles == role] == table[role]).all()


def test_the_residual_stream_is_the_common_denominator(vlm, batch):
    stream = captured(vlm, batch, [Site(1, "layer_out"), FFN, MHSA])
    real = batch.roles != Role.PAD
    for site in (FFN, MHSA):
        with ablate(vlm, [site], "zero") as stats:
            vlm.forward(batch)
        ratio = stream[site].norm(dim=-1) / stream[Site(1, "layer_out")].norm(dim=-1)
        assert stats[site].residual_norm == pytest.approx(float(ratio[real].mean()), rel=1e-4)
        assert stats[site].relative_norm == pytest.approx(1, rel=1e-5)
    with ablate(vlm, [NEURONS], "zero") as stats:
        vlm.forward(batch)
    assert stats[NEURONS].residual_norm == stats[NEURONS].relative_norm


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_released_operator(family):
    """FFN: the output of the FFN before; attention: its normed input."""
    vlm = VLM(*tiny.FAMILIES[family](), name=family)
    batch = vlm.batch(EXAMPLES)
    real = batch.roles != Role.PAD
    inputs = []
    attention = vlm.anatomy.layers[2].self_attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with ablate(vlm, [FFN, MHSA], "previous-layer"):
        found = captured(vlm, batch, [FFN, MHSA, Site(1, "ffn_out")])
    handle.remove()
    assert torch.equal(found[FFN][real], found[Site(1, "ffn_out")][real])
    assert torch.equal(found[MHSA][real], inputs[0][real])


@pytest.mark.parametrize("how", ["mean", "zero", "resample", "constant", "paired"])
def test_a_window_equals_nested_ablations(vlm, how):
    batch, other = vlm.batch(EXAMPLES), vlm.batch(EXAMPLES[::-1])
    sites = [Site(layer, "mhsa_out") for layer in (1, 2, 3)]
    with read(vlm, sites) as donors:
        vlm.forward(other)
    means = {site: torch.randn(N_CLASSES, tiny.WIDTH) for site in sites}
    with ablate(vlm, sites, how, means, donors=donors):
        at_once = vlm.forward(batch, logits_to_keep=1)
    one, two, three = ([site] for site in sites)
    with (
        ablate(vlm, one, how, means, donors=donors),
        ablate(vlm, two, how, means, donors=donors),
        ablate(vlm, three, how, means, donors=donors),
    ):
        assert torch.equal(vlm.forward(batch, logits_to_keep=1), at_once)


def test_gradients_reach_a_constant(vlm, batch):
    values = torch.zeros(N_CLASSES, tiny.WIDTH, requires_grad=True)
    with ablate(vlm, [FFN], "constant", {FFN: values}):
        loss = vlm.forward(batch, logits_to_keep=1, grad=True).logsumexp(-1).sum()
    (grad,) = torch.autograd.grad(loss, [values])
    reached = grad.norm(dim=1) > 0
    assert reached.tolist() == [False, True, True, True, True]


def test_first_needed_layers():
    assert first_needed([FFN], "zero") == first_needed([MHSA], "paired") == 2
    assert first_needed([LAYER], "skip") == 3
    assert first_needed([LAYER, FFN], "mean") == 2
    assert first_needed([FFN], "previous-layer") == 1
    assert first_needed([Site(1, "ffn_out"), FFN], "previous-layer") == 0
    assert first_needed([MHSA], "previous-layer") == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"how": "noise"}, UsageError, "unknown; use one of mean"),
        ({"how": "zero", "sites": [Site(9, "ffn_out")]}, SiteError, "does not exist"),
        ({"how": "zero", "sites": []}, SiteError, "No sites"),
        ({"how": "skip", "sites": [NEURONS]}, UsageError, "can't be skipped"),
        ({"how": "mean"}, UsageError, "needs means"),
        ({"how": "mean", "means": {LAYER: torch.zeros(3)}}, UsageError, "needs means"),
        ({"how": "mean", "means": {FFN: torch.zeros(3)}}, UsageError, "expected"),
        ({"how": "constant"}, UsageError, r"Constant ablation needs means\[2.ffn_out\]"),
        ({"how": "mean", "means": {FFN: torch.zeros(6, 32)}}, UsageError, r"expected \(32,\)"),
        ({"how": "paired"}, UsageError, "needs donors"),
        ({"how": "previous-layer", "sites": [FFNS[0]]}, SiteError, "no earlier FFN"),
        ({"how": "previous-layer", "sites": FFNS[:2]}, SiteError, "0.ffn_out has no earlier"),
        ({"how": "previous-layer", "sites": [LAYER]}, UsageError, "not 2.layer_out"),
        ({"how": "previous-layer", "sites": [NEURONS]}, UsageError, "not 2.ffn_neurons"),
    ],
)
def test_bad_ablations_are_refused(vlm, arguments, error, message):
    count = hooks_of(vlm)
    with pytest.raises(error, match=message), ablate(vlm, **({"sites": [FFN]} | arguments)):
        pass
    assert hooks_of(vlm) == count


def test_nothing_is_left_behind_where_a_pass_fails(vlm, batch):
    def fail(h, roles):
        raise ValueError("stop")

    before, count = vlm.forward(batch, logits_to_keep=1), hooks_of(vlm)
    with (
        pytest.raises(ValueError, match="stop"),
        ablate(vlm, [LAYER], "skip"),
        edit(vlm, {FFN: fail}),
    ):
        vlm.generate(EXAMPLES)
    assert hooks_of(vlm) == count
    assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)
