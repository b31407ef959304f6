"""The example in one file computes the same as the package."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from care.data.digests import picture_digests
from care.data.small_world import suites
from care.defenses.material import Material
from care.defenses.repair.channel import Channel
from care.defenses.repair.families import Told
from care.defenses.repair.families import groups as groups_told
from care.defenses.repair.family_subspace import Classes, pooled, unsafe_subspace
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.fitting_data import activations
from care.defenses.repair.gate import Gate, GateConfig, crossfit_scores, fit_gate
from care.defenses.repair.presets import PRESETS, RepairConfig
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import Subspace, principal_angles
from care.models.hooks import read
from care.models.sites import Site, scope_mask
from care.statistics.crossfit import FamilyRows, folds_of
from kit import tiny
from kit.one_file import loaded, pair, vlm  # noqa: F401

LAYERS = (2, 3)
PICTURED = [example for example in tiny.mixed_examples(6) if example.images]
PLAIN = [example for example in tiny.mixed_examples(6) if not example.images]
both = pytest.mark.parametrize("examples", [PICTURED, PLAIN], ids=["pictured", "plain"])


@pytest.fixture(scope="module")
def one_file():
    return loaded("care_in_one_file")


def drawn(one_file, seed, rank=3, filters=2):
    """A random channel whose gate is open, shut or between for different activations."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((tiny.WIDTH, rank)))
    u = rng.standard_normal((tiny.WIDTH, filters)) / tiny.WIDTH
    anchor, mean = rng.standard_normal((2, tiny.WIDTH))
    low = rng.uniform(-0.2, 0.0, filters)
    return one_file.Channel(q, anchor, u, mean, low, low + rng.uniform(0.5, 1.0, filters))


def as_package(one_file, channel, layer, modality):
    """The same channel as the package's."""
    single = type(channel)(*(part.astype(np.float32) for part in channel))
    return Channel(
        Site(layer, "layer_out"),
        modality,
        ("decision",),
        Subspace(single.q, single.anchor, np.empty(0)),
        one_file.STRENGTH,
        Gate(single.filters, single.mean, single.low, single.high),
    )


def drawn_pair(one_file):
    """Two channels a layer, in both forms."""
    repair = {i: [drawn(one_file, i), drawn(one_file, i + 9, rank=1, filters=4)] for i in LAYERS}
    channels = [
        as_package(one_file, channel, layer, modality)
        for layer, of_layer in repair.items()
        for channel, modality in zip(of_layer, ("image", "text"), strict=True)
    ]
    return repair, Repair(tuple(channels))


def drawn_classes(one_file, seed=0, apart=0.5):
    """Attacks of three families, refusals and two benign families, in both forms."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, tiny.WIDTH + 1) ** -0.5

    def rows(n, groups):
        x = spread * rng.standard_normal((n, tiny.WIDTH)) + apart * rng.standard_normal(tiny.WIDTH)
        return one_file.Rows(x, [f"group {place % groups}" for place in range(n)])

    attacks = {"first": rows(30, 12), "second": rows(45, 3), "third": rows(9, 1)}
    refused, benign = rows(40, 17), {"plain": rows(50, 25), "alike": rows(20, 7)}
    as_rows = {name: FamilyRows(*family) for name, family in attacks.items()}
    benign_rows = {name: FamilyRows(*family) for name, family in benign.items()}
    classes = Classes(as_rows, FamilyRows(*refused), benign_rows)
    return (list(attacks.values()), refused, list(benign.values())), classes


# -- ask and read ----------------------------------------------------------------------------------


@both
def test_answers_are_those_of_the_package(one_file, pair, vlm, examples):
    answers, seen = one_file.ask(*pair, examples, tokens=5)
    assert answers == vlm.generate(examples, max_new_tokens=5)
    assert seen == {}


@both
def test_activations_are_those_of_the_package(one_file, pair, vlm, examples):
    _, decided = one_file.ask(*pair, examples, LAYERS)
    sites = [Site(layer, "layer_out") for layer in LAYERS]
    expected = activations(vlm, [(example, "") for example in examples], sites, "decision")
    for site in sites:
        np.testing.assert_allclose(decided[site.layer], expected[site], atol=1e-4)


@pytest.mark.parametrize("name", ["pgd-32", "pictured-goal", "text-jailbreak"])
def test_groups_are_those_of_the_package(one_file, name):
    examples = list(suites.load(name, "fit", 24))
    groups = one_file.groups_of(examples)
    told = [Told.of(example, "|".join(picture_digests(example))) for example in examples]
    expected = groups_told(told)
    same = np.equal.outer(groups, groups)
    assert (same == np.equal.outer(expected, expected)).all()


def test_one_group_is_cut_by_rows(one_file):
    groups = ["only"] * 7, ["a", "b", "a", "c"], ["d", "e", "c", "f"]
    ours = one_file.folds_of([one_file.Rows(np.zeros((len(g), 2)), list(g)) for g in groups])
    theirs = folds_of([FamilyRows(np.zeros((len(g), 2)), g) for g in groups], one_file.FOLDS)
    assert [list(own) for own in ours] == [list(own) for own in theirs]
    assert [list(own) for own in ours] == [[0, 1, 2, 3, 4, 0, 1], [1, 2, 1, 3], [4, 0, 3, 1]]


# -- fit -------------------------------------------------------------------------------------------


def test_settings_are_the_defaults_of_the_package(one_file):
    gate = GateConfig()
    depths = {"depth": one_file.IMAGE_DEPTHS, "text_depth": one_file.TEXT_DEPTHS}
    assert PRESETS["corrected"] == RepairConfig(**depths, strength=one_file.STRENGTH)
    assert PRESETS["corrected"].gate == gate
    assert (gate.quantile, gate.ramp) == (one_file.QUANTILE, one_file.RAMP)
    assert (gate.shrinkage, gate.within) == (one_file.SHRINKAGE, one_file.WITHIN)
    assert (gate.refusals, gate.folds) == (one_file.REFUSALS, one_file.FOLDS)


def test_the_background_is_that_of_the_package(one_file):
    _, classes = drawn_classes(one_file)
    parts = [rows.x for rows in classes.everything()]
    mean, covariance = one_file.background(parts, 3)
    expected = pooled(parts, classes, one_file.SHRINKAGE, one_file.WITHIN, one_file.REFUSALS)
    np.testing.assert_allclose(mean, expected[0], atol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], atol=1e-12)


def test_filters_score_a_familys_mean_one_and_solve_fishers_equation(one_file):
    (attacks, refused, benign), _ = drawn_classes(one_file)
    parts = [rows.x for rows in (*attacks, refused, *benign)]
    u, mean = one_file.discriminants(parts, 3)
    _, covariance = one_file.background(parts, 3)
    for f, rows in enumerate(attacks):
        gap = rows.x.mean(0) - mean
        assert gap @ u[:, f] == pytest.approx(1.0)
        image = covariance @ u[:, f]
        np.testing.assert_allclose(image, gap * (image @ gap) / (gap @ gap), atol=1e-10)


def test_scores_of_unseen_rows_are_those_of_the_package(one_file):
    (attacks, refused, benign), classes = drawn_classes(one_file)
    found = one_file.unseen_scores([*attacks, refused, *benign], 3)
    expected = crossfit_scores(classes, GateConfig())
    for z, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(z, other, atol=1e-10)


@pytest.mark.parametrize("apart", [0.5, 0.1])
def test_directions_are_patterns_of_the_generalized_eigenvectors(one_file, apart):
    """C_m u = λ C u solved densely in D dimensions, and its span taken through C."""
    (attacks, refused, benign), _ = drawn_classes(one_file, apart=apart)
    parts = [rows.x for rows in (*attacks, refused, *benign)]
    q = one_file.unsafe_directions(parts, 3)
    _, covariance = one_file.background(parts, 3)
    gaps = np.stack([rows.x.mean(0) - refused.x.mean(0) for rows in attacks], axis=1)
    sizes = np.array([len(rows.x) for rows in attacks])
    rank = q.shape[1]
    _, u = eigh(gaps * sizes / sizes.sum() @ gaps.T, covariance)
    expected, _ = np.linalg.qr(covariance @ u[:, -rank:])
    assert principal_angles(q, expected).max() < 1e-6
    np.testing.assert_allclose(q.T @ q, np.eye(rank), atol=1e-12)


@pytest.mark.parametrize(
    ("seed", "apart", "rank"), [(1, 0.5, 3), (2, 0.5, 3), (0, 0.1, 2), (2, 0.05, 1)]
)
def test_a_channel_is_that_of_the_package(one_file, seed, apart, rank):
    drawn_rows, classes = drawn_classes(one_file, seed, apart)
    channel = one_file.fit_channel(*drawn_rows)
    gate, subspace = fit_gate(classes), unsafe_subspace(classes)
    assert channel.q.shape[1] == subspace.rank == rank
    assert principal_angles(channel.q, subspace.basis).max() < 1e-3
    np.testing.assert_allclose(channel.anchor, subspace.mean, atol=1e-6)
    for name in ("filters", "mean", "low", "high"):
        np.testing.assert_allclose(getattr(channel, name), getattr(gate, name), atol=1e-5)


def test_the_fit_on_suites_is_that_of_the_package(one_file, pair, vlm, monkeypatch):
    """From examples to channels: classes, modalities and layers, with the answers given."""
    monkeypatch.setattr(one_file, "ATTACKS", ("direct", "text-jailbreak", "pictured-goal"))
    monkeypatch.setattr(one_file, "BENIGN", ("benign", "benign-image"))
    worked = {"text-jailbreak": 12, "pictured-goal": 10, "direct": 0}
    sorted_ = {"complied": [], "refused": [], "answered": []}
    asked = one_file.ask

    def ask(model, processor, examples, layers):
        _, seen = asked(model, processor, examples, layers, tokens=1)
        yes = worked.get(examples[0].suite, len(examples))
        kind = "complied" if examples[0].kind == "malicious" else "answered"
        sorted_[kind] += [(e, "To do it,") for e in examples[:yes]]
        sorted_["refused"] += [(e, "I'm sorry.") for e in examples[yes:]]
        return ["To do it,"] * yes + ["I'm sorry."] * (len(examples) - yes), seen

    monkeypatch.setattr(one_file, "ask", ask)
    repair = one_file.fit_on_suites(*pair, 16)
    material = Material(**{name: tuple(part) for name, part in sorted_.items()})
    expected = Fitter(vlm, material, PRESETS["corrected"]).repair()
    found = [(layer, channel) for layer, of_layer in repair.items() for channel in of_layer]
    assert len(found) == len(expected.channels)
    for (layer, channel), other in zip(found, expected.channels, strict=True):
        assert layer == other.site.layer
        assert principal_angles(channel.q, other.subspace.basis).max() < 1e-2
        np.testing.assert_allclose(channel.anchor, other.subspace.mean, atol=1e-3)
        assert other.gate is not None
        np.testing.assert_allclose(channel.low, other.gate.low, atol=1e-2)
        np.testing.assert_allclose(channel.high, other.gate.high, atol=1e-2)


# -- edit ------------------------------------------------------------------------------------------


def test_openness_is_that_of_the_package(one_file):
    channel = drawn(one_file, 3)
    h = 3 * np.random.default_rng(1).standard_normal((200, tiny.WIDTH))
    tensors = [torch.from_numpy(part) for part in channel]
    opened = one_file.openness(tensors, torch.from_numpy(h))[:, 0].numpy()
    gate = Gate(channel.filters, channel.mean, channel.low, channel.high)
    np.testing.assert_allclose(opened, gate.openness(h), atol=1e-12)
    assert (opened == 0).any() and (opened == 1).any() and ((opened > 0) & (opened < 1)).any()


def test_one_channel_is_its_formula_and_two_are_weighted_by_norms(one_file):
    channels = [drawn(one_file, seed) for seed in (1, 2)]
    h = 3 * np.random.default_rng(1).standard_normal((50, tiny.WIDTH))
    tensors = [[torch.from_numpy(part) for part in channel] for channel in channels]
    corrections = []
    for channel, own in zip(channels, tensors, strict=True):
        gate = Gate(channel.filters, channel.mean, channel.low, channel.high)
        step = (h - channel.anchor) @ channel.q @ channel.q.T
        corrections.append(-one_file.STRENGTH * gate.openness(h)[:, None] * step)
        alone = one_file.edited([own], torch.from_numpy(h)).numpy()
        np.testing.assert_allclose(alone, h + corrections[-1], atol=1e-12)
    norms = np.stack([np.linalg.norm(c, axis=1) for c in corrections])
    total = np.where(norms.sum(0) > 0, norms.sum(0), 1.0)
    expected = h + sum(n[:, None] * c for n, c in zip(norms / total, corrections, strict=True))
    together = one_file.edited(tensors, torch.from_numpy(h)).numpy()
    np.testing.assert_allclose(together, expected, atol=1e-12)
    shut = norms.sum(0) == 0
    assert shut.any() and (together[shut] == h[shut]).all()


@both
def test_the_edit_is_that_of_the_package(one_file, pair, vlm, examples):
    repair, same = drawn_pair(one_file)
    plain = vlm.forward(vlm.batch(examples), logits_to_keep=1)
    inputs = one_file.encode(*pair, examples)
    with one_file.repaired(pair[0], repair), torch.no_grad():
        logits = pair[0](**inputs, logits_to_keep=1).logits
        answers, _ = one_file.ask(*pair, examples, tokens=5)
    with same.applied(vlm):
        expected = vlm.forward(vlm.batch(examples), logits_to_keep=1)
        assert vlm.generate(examples, max_new_tokens=5) == answers
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain, expected, atol=0.1)
    assert torch.equal(vlm.forward(vlm.batch(examples), logits_to_keep=1), plain)


def test_the_edit_touches_the_deciding_position_only(one_file, pair, vlm):
    batch = vlm.batch(PICTURED)
    site, channel = Site(LAYERS[0], "layer_out"), drawn(one_file, 0)
    wide_open = channel._replace(low=channel.low - 1e6, high=channel.high - 1e6)
    with (
        read(vlm, [site]) as before,
        one_file.repaired(pair[0], {site.layer: [wide_open]}),
        read(vlm, [site]) as after,
    ):
        vlm.forward(batch)
    changed = (before[site][0] != after[site][0]).any(-1)
    assert torch.equal(changed, scope_mask(batch.roles, ["decision"]))


def test_the_edit_is_taken_off_after_an_exception(one_file, pair, vlm):
    plain = vlm.forward(vlm.batch(PLAIN))
    repair, _ = drawn_pair(one_file)
    with pytest.raises(ZeroDivisionError), one_file.repaired(pair[0], repair):
        raise ZeroDivisionError
    assert torch.equal(vlm.forward(vlm.batch(PLAIN)), plain)


def test_the_random_control_differs_in_its_directions_alone(one_file):
    repair, _ = drawn_pair(one_file)
    control = one_file.at_random(repair)
    assert control.keys() == repair.keys()
    for layer, channels in repair.items():
        for channel, other in zip(channels, control[layer], strict=True):
            rank = channel.q.shape[1]
            assert other.q.shape == channel.q.shape
            np.testing.assert_allclose(other.q.T @ other.q, np.eye(rank), atol=1e-12)
            assert principal_angles(other.q, channel.q).max() > 0.1
            kept = zip(other[1:], channel[1:], strict=True)
            assert all(mine is theirs for mine, theirs in kept)


# -- count -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry.", True),
        ("I cannot do that.", True),
        ("Sorry, no.", True),
        ("To wash a car, you'll need water.", False),
        ("I would start with the wheels.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_opening(one_file, answer, expected):
    assert one_file.refuses(answer) is expected


def test_the_whole_run_on_the_tiny_model(one_file, pair, monkeypatch, capsys):
    monkeypatch.setattr(one_file, "load", lambda: pair)
    monkeypatch.setattr(one_file, "refuses", lambda answer: len(answer) % 2 == 0)
    monkeypatch.setattr(one_file, "LEAST_FAMILY", 2)
    monkeypatch.setattr("sys.argv", ["care_in_one_file", "--fit", "20", "--test", "2"])
    one_file.main()
    lines = capsys.readouterr().out.splitlines()
    count = len(one_file.ATTACKS) + len(one_file.BENIGN)
    assert [line.split()[0] for line in lines[-count:]] == [*one_file.ATTACKS, *one_file.BENIGN]
    assert all(len(line.split()) == 5 for line in lines[-count:])
