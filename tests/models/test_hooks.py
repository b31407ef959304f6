"""Hooks: edits and what is read are exact, counted, and leave nothing behind."""

import pytest
import torch

from care.errors import SiteError
from care.models.edit_stats import SiteStats
from care.models.hooks import counted, edit, read
from care.models.sites import Role, Site, scope_mask
from care.models.vlm import VLM
from kit import tiny
from kit.refusals import refusals
from kit.tiny import captured, hooks_of

EXAMPLES = tiny.mixed_examples(5)
FFN, MHSA, LAYER, NEURONS = (
    Site(1, kind) for kind in ("ffn_out", "mhsa_out", "layer_out", "ffn_neurons")
)
KINDS = [FFN, MHSA, LAYER, NEURONS]


@pytest.fixture(scope="module")
def vlm():
    vlm = tiny.tiny_vlm()
    vlm.forward(vlm.batch(EXAMPLES))
    return vlm


@pytest.fixture(scope="module")
def batch(vlm):
    return vlm.batch(EXAMPLES, ["I'm sorry."] * len(EXAMPLES))


def shift(scope):
    return lambda h, roles: torch.where(scope_mask(roles, [scope])[..., None], h + 1, h)


# -- edit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("site", KINDS, ids=str)
def test_an_idle_edit_is_bit_equal_and_a_real_one_is_not(family, site):
    vlm = VLM(*tiny.FAMILIES[family](), family)
    batch = vlm.batch(EXAMPLES[:3])
    before = vlm.forward(batch, logits_to_keep=1)
    for idle in (lambda h, roles: h, lambda h, roles: h + 0 * h):
        with edit(vlm, {site: idle}) as stats:
            assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)
        assert stats.tokens == 0 and stats.relative_norm == 0 and stats[site].calls == 1
    with edit(vlm, {site: shift("all")}) as stats:
        assert not torch.allclose(vlm.forward(batch, logits_to_keep=1), before, atol=1e-3)
    assert stats.tokens == int((batch.roles != Role.PAD).sum())
    assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)


@pytest.mark.parametrize("scope", ["image", "text", "response", "all"])
def test_an_edit_reaches_exactly_its_scope(vlm, batch, scope):
    plain = captured(vlm, batch, [FFN])[FFN]
    with edit(vlm, {FFN: shift(scope)}) as stats:
        edited = captured(vlm, batch, [FFN])[FFN]
    mask = scope_mask(batch.roles, [scope])
    torch.testing.assert_close(edited[mask], plain[mask] + 1)
    assert torch.equal(edited[~mask], plain[~mask])
    assert stats.tokens == int(mask.sum())


def test_every_edit_is_counted_for_who_asks_the_model_whoever_makes_it(vlm, batch):
    with edit(vlm, {FFN: shift("all")}), counted(vlm) as found:
        vlm.forward(batch)
        for site, scope in ((FFN, "image"), (LAYER, "all")):
            with edit(vlm, {site: shift(scope)}):  # and nobody holds what it yields
                vlm.forward(batch)
        with counted(vlm) as inner, edit(vlm, {FFN: shift("text")}):
            vlm.forward(batch)
    assert [list(stats) for stats in found] == [[FFN], [LAYER]]
    assert [stats.tokens for stats in found] == [
        int((batch.roles == Role.IMAGE).sum()),
        int((batch.roles != Role.PAD).sum()),
    ]
    assert [stats.tokens for stats in inner] == [int((batch.roles == Role.TEXT).sum())]
    assert vlm.edit_counts is None


def test_relative_norm_is_that_of_the_edit(vlm, batch):
    with edit(vlm, {FFN: lambda h, roles: h * 1.25, LAYER: lambda h, roles: h * 0.5}) as stats:
        vlm.forward(batch)
    assert stats[FFN].relative_norm == pytest.approx(0.25, rel=1e-5)
    assert stats[LAYER].relative_norm == pytest.approx(0.5, rel=1e-5)
    assert stats.relative_norm == pytest.approx(0.375, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_statistics_of_a_pass(dtype):
    roles = torch.tensor([[Role.TEXT, Role.TEXT, Role.PAD, Role.IMAGE]])
    before = torch.tensor([3.0, 4.0, 0.0]).to(dtype).expand(1, 4, 3)
    after = before.clone()
    after[0, 1:3] = torch.tensor([3.0, 4.0, 2.5])
    stats = SiteStats()
    for _ in range(2):
        stats.add(before, after, roles)
    assert (stats.calls, stats.tokens, stats.relative_norm) == (2, 2, 0.5)
    stats.add(before, before, roles)
    assert (stats.calls, stats.tokens, stats.relative_norm) == (3, 2, 0.5)


def test_statistics_of_a_change_that_float16_cannot_hold():
    before = torch.full((1, 1, 4), 50_000.0).half()
    stats = SiteStats()
    stats.add(before, -before, torch.full((1, 1), int(Role.TEXT)))
    assert stats.relative_norm == pytest.approx(2)


def test_statistics_do_not_depend_on_when_they_are_measured():
    """Passes of any size, with rows that fall away, one by one or together."""
    generator = torch.Generator().manual_seed(0)
    passes = []
    for rows, length in ((3, 5), (3, 1), (2, 1), (2, 1), (1, 4)):
        before = torch.randn(rows, length, 8, generator=generator)
        roles = torch.randint(0, 4, (rows, length), generator=generator)
        moved = torch.rand(rows, length, 1, generator=generator) < 0.7
        passes.append((before, torch.where(moved, before + 1, before), roles))
    together, single = SiteStats(), SiteStats()
    for each in passes:
        single.add(*each)
        with torch.no_grad():
            together.add(*each)
        last = single.last
    assert last.shape == (3, 1) and torch.equal(together.last, last)
    expected = sum(((b != a).any(-1) & (r != Role.PAD)).sum() for b, a, r in passes)
    assert together.tokens == single.tokens == expected
    assert together.relative_norm == pytest.approx(single.relative_norm)
    together.add(*[passes[0][0]] * 2, passes[0][2])
    assert together.last is None and together.tokens == expected
    assert together.calls == len(passes) + 1


def test_positional_arguments_and_no_mask(vlm):
    ids = vlm.batch(EXAMPLES[0]).inputs["input_ids"]
    with read(vlm, [FFN]) as recorder, torch.no_grad():
        vlm.model(ids)
    assert (recorder[FFN][1] == Role.TEXT).all()


def test_edits_compose_in_order_of_entry(vlm, batch):
    plain = captured(vlm, batch, [FFN])[FFN]
    with edit(vlm, {FFN: lambda h, roles: h + 1}), edit(vlm, {FFN: lambda h, roles: h * 2}):
        assert torch.equal(captured(vlm, batch, [FFN])[FFN], (plain + 1) * 2)
    with read(vlm, [FFN]) as outer, edit(vlm, {FFN: lambda h, roles: h + 1}):
        vlm.forward(batch)
    assert torch.equal(outer[FFN][0], plain)


def test_an_edit_in_another_type_is_cast_back(vlm, batch):
    with edit(vlm, {FFN: lambda h, roles: h.double() + 1}) as stats:
        assert vlm.forward(batch, logits_to_keep=1).dtype == torch.float32
    assert stats.tokens > 0


def test_gradients_flow_through_edits(vlm, batch):
    direction = torch.zeros(tiny.WIDTH, requires_grad=True)
    with edit(vlm, {FFN: lambda h, roles: h + direction}):
        vlm.forward(batch, logits_to_keep=1, grad=True).logsumexp(-1).sum().backward()
    assert direction.grad is not None and direction.grad.abs().sum() > 0
    vlm.model.zero_grad()


def test_statistics_are_counted_for_whoever_holds_them(vlm, batch, monkeypatch):
    counted = []
    monkeypatch.setattr(SiteStats, "add", lambda self, *_: counted.append(self))
    bare = vlm.forward(batch)
    with edit(vlm, {FFN: lambda h, roles: h + 1}):
        assert not torch.equal(vlm.forward(batch), bare)
    assert counted == []
    with edit(vlm, {FFN: lambda h, roles: h + 1}) as stats:
        vlm.forward(batch)
    assert counted == list(stats.values())


# -- errors and cleaning up ------------------------------------------------------------------------


NOWHERE = Site(9, "ffn_out")


def entered(vlm, context):
    """Enter and leave a context, which leaves as many hooks as there were."""
    count = hooks_of(vlm)
    try:
        with context:
            pass
    finally:
        assert hooks_of(vlm) == count


test_wrong_sites_are_refused_on_entry = refusals(
    (SiteError, "does not exist", lambda vlm: entered(vlm, edit(vlm, {NOWHERE: shift("all")}))),
    (SiteError, "does not exist", lambda vlm: entered(vlm, read(vlm, [FFN, NOWHERE]))),
    (SiteError, "No sites", lambda vlm: entered(vlm, edit(vlm, {}))),
    (SiteError, "No sites", lambda vlm: entered(vlm, read(vlm, []))),
    (SiteError, "Scope", lambda vlm: entered(vlm, read(vlm, [FFN], ["images"]))),
)


@pytest.mark.parametrize("wrong", [lambda h, roles: h[:, :1], lambda h, roles: None])
@pytest.mark.parametrize("site", KINDS, ids=str)
def test_edits_of_wrong_shape_are_refused(vlm, batch, site, wrong):
    count = hooks_of(vlm)
    with pytest.raises(SiteError, match="returned"), edit(vlm, {site: wrong}):
        vlm.forward(batch)
    assert hooks_of(vlm) == count


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind(vlm, batch, error):
    def fail(h, roles):
        raise error("stop")

    before, count = vlm.forward(batch, logits_to_keep=1), hooks_of(vlm)
    with pytest.raises(error), read(vlm, [LAYER]), edit(vlm, {FFN: fail}):
        vlm.generate(EXAMPLES)
    assert hooks_of(vlm) == count and vlm.roles.explicit is None
    with pytest.raises(error), edit(vlm, {FFN: fail}):
        vlm.forward(batch)
    assert hooks_of(vlm) == count and vlm.roles.explicit is None
    assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)


def test_unknown_roles_are_refused(vlm, batch):
    embeddings = vlm.model.get_input_embeddings()(batch.inputs["input_ids"])
    for module in (vlm.model, vlm.model.get_decoder()):
        with pytest.raises(SiteError, match="input_ids"), read(vlm, [FFN]), torch.no_grad():
            module(inputs_embeds=embeddings)


def test_a_site_that_is_never_reached_is_an_error(vlm, batch):
    layer = vlm.anatomy.layers[1]
    whole = layer.mlp
    with pytest.raises(SiteError, match=r"1\.ffn_out"), edit(vlm, {FFN: shift("all")}):
        layer.mlp = torch.nn.Identity()
        try:
            vlm.forward(batch)
        finally:
            layer.mlp = whole


def compile_whole(vlm):
    return VLM(torch.compile(vlm.model, backend="eager"), vlm.processor)


def compile_in_place(vlm):
    vlm.model.compile(backend="eager")
    return vlm


def compile_a_layer(vlm):
    vlm.anatomy.layers[2].compile(backend="eager")
    return vlm


def compile_forward(vlm):
    vlm.model.forward = torch.compile(vlm.model.forward, backend="eager")
    return vlm


@pytest.mark.parametrize(
    "compiled", [compile_whole, compile_in_place, compile_a_layer, compile_forward]
)
def test_compiled_models_answer_and_take_no_hooks(compiled):
    """What was compiled passes over hooks that come later, and would go unrepaired."""
    vlm = tiny.tiny_vlm()
    batch = vlm.batch(tiny.mixed_examples(2))
    logits = vlm.forward(batch)
    vlm = compiled(vlm)
    if compiled is compile_a_layer:  # to compile the whole takes long
        assert torch.equal(vlm.forward(batch), logits)
    for context in (read(vlm, [FFN]), edit(vlm, {FFN: shift("all")})):
        with pytest.raises(SiteError, match=r"torch\.compile"), context:
            pass


# -- read ------------------------------------------------------------------------------------------


def test_reading_does_not_change_and_keeps_the_last_pass(vlm, batch):
    before = vlm.forward(batch, logits_to_keep=1)
    with read(vlm, KINDS, ["image"]) as recorder:
        with pytest.raises(SiteError, match="no forward pass"):
            recorder[FFN]
        assert torch.equal(vlm.forward(batch, logits_to_keep=1), before)
    h, roles = recorder[FFN]
    assert torch.equal(roles, batch.roles) and h.shape == (*roles.shape, tiny.WIDTH)
    assert recorder.rows(FFN).shape == (int((roles == Role.IMAGE).sum()), tiny.WIDTH)
    assert len(recorder.rows(NEURONS, ["response"])) == int((roles == Role.RESPONSE).sum())
    with pytest.raises(SiteError, match="isn't being read"):
        recorder[Site(0, "ffn_out")]


def test_a_sink_sees_every_pass(vlm):
    passes = []
    with read(vlm, [FFN], sink=lambda site, h, roles: passes.append((site, h.shape[1]))):
        vlm.generate(EXAMPLES[:1], max_new_tokens=3)
    assert passes[0][1] > 1 and passes[1:] == [(FFN, 1)] * 2
