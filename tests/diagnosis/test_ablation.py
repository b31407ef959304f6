"""Ablations against closed forms, on modules that can be computed by hand and on tiny models."""

import pytest
import torch

from care.diagnosis.ablation import ablate, first_needed
from care.errors import SiteError, UsageError
from care.models.alignment import align
from care.models.hooks import read
from care.models.sites import DECISION, N_CLASSES, Role, Site, position_classes
from care.models.vlm import VLM
from kit import tiny
from kit.tiny import captured

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


def test_a_pair_gives_what_stands_at_the_same_place(vlm):
    here, there = vlm.batch(EXAMPLES[1:3]), vlm.batch([EXAMPLES[3], EXAMPLES[0]])
    for site in (FFN, MHSA, LAYER, NEURONS):
        with read(vlm, [site]) as recorder:
            vlm.forward(there)
        plain = captured(vlm, here, [site])[site]
        with ablate(vlm, [site], "paired", donors=recorder):
            found = captured(vlm, here, [site])[site]
        index, has = align(here.roles, there.roles)
        for row in range(2):
            for place in range(here.roles.shape[1]):
                donor = recorder[site][0][row, index[row, place]]
                expected = donor if has[row, place] else plain[row, place]
                if here.roles[row, place] != Role.PAD:
                    assert torch.equal(found[row, place], expected)


def test_a_run_paired_with_itself_is_unchanged(vlm, batch):
    before = vlm.forward(batch, logits_to_keep=1)
    with read(vlm, [FFN, LAYER]) as recorder:
        vlm.forward(batch)
    with ablate(vlm, [FFN, LAYER], "paired", donors=recorder) as stats:
        assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)
    assert stats.tokens == 0


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
    sites = arguments.pop("sites", [FFN])
    with pytest.raises(error, match=message), ablate(vlm, sites, **arguments):
        pass


def test_pairs_that_dont_fit_are_refused(vlm, batch):
    with read(vlm, [FFN]) as recorder:
        vlm.forward(vlm.batch(EXAMPLES[:2]))
    message = "doesn't fit 5 rows"
    with pytest.raises(UsageError, match=message), ablate(vlm, [FFN], "paired", donors=recorder):
        vlm.forward(batch)
    with read(vlm, [FFN]) as recorder:
        vlm.forward(vlm.batch(EXAMPLES[1]))
    message = "no counterpart of generated"
    with pytest.raises(UsageError, match=message), ablate(vlm, [FFN], "paired", donors=recorder):
        vlm.generate(EXAMPLES[1], max_new_tokens=2)
