"""The paper in one file computes the same as the package's preset."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care.defenses.repair.attribution import AttributionConfig
from care.defenses.repair.channel import Channel
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.fitting_data import activations
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import Subspace, SubspaceConfig, fit_subspace, principal_angles
from care.diagnosis.ablation import ablate
from care.diagnosis.results import PAPER_LAYERS
from care.models.sites import Site
from care.statistics.moments import Moments
from care.statistics.token_kernels import cross_scores, self_scores
from kit import tiny
from kit.fits import material
from kit.one_file import loaded, pair, vlm  # noqa: F401

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def one_file():
    return loaded("paper_in_one_file")


def small(rank=3):
    return replace(PRESETS["paper"], subspace=SubspaceConfig(target="cov", rank=rank))


def test_settings_are_those_of_the_preset(one_file):
    config = PRESETS["paper"]
    assert config.attribution == AttributionConfig(one_file.VISUAL_SHARE, one_file.TEXT_SHARE)
    assert config.subspace == SubspaceConfig(target="cov", rank="auto", max_rank=one_file.RANK)
    assert config.subspace.min_ridge == one_file.LEAST_RIDGE
    assert (config.beta, config.strength, config.fusion) == (one_file.BETA, 1.0, "adaptive")
    assert (config.kind, config.scopes, config.gate) == ("ffn_out", ("all",), None)
    assert one_file.LAYERS == PAPER_LAYERS


# -- ask and ablate --------------------------------------------------------------------------------


def test_answers_are_those_of_the_package(one_file, pair, vlm):
    for examples in ([e for e in tiny.mixed_examples(6) if bool(e.images) == p] for p in (0, 1)):
        assert one_file.ask(*pair, examples, tokens=5) == vlm.generate(examples, max_new_tokens=5)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_bypassed_layer_is_that_of_the_package(one_file, pair, vlm, layer):
    examples = tiny.mixed_examples(4)
    inputs, _ = one_file.encode(*pair, examples)
    with one_file.bypassed(pair[0], layer), torch.no_grad():
        logits = pair[0](**inputs, logits_to_keep=1).logits
    with ablate(vlm, [Site(layer, "layer_out")], "skip"):
        expected = vlm.forward(vlm.batch(examples), logits_to_keep=1)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(logits, vlm.forward(vlm.batch(examples), logits_to_keep=1), atol=0.1)


def test_the_layers_are_those_whose_loss_sets_attacks_apart(one_file, pair, monkeypatch):
    """Shares of refusals given for each layer; benign ones count against it."""
    refused = {"attack": (0, 3, 1, 2), "benign": (0, 3, 0, 0)}
    at = []
    monkeypatch.setattr(one_file, "LAYERS", 2)

    def ask(model, processor, group):
        count = refused[group[0]][at[-1]]
        return ["I'm sorry."] * count + ["Sure."] * (3 - count)

    class Bypassed:
        def __init__(self, model, layer):
            at.append(layer)

        def __enter__(self): ...

        def __exit__(self, *_): ...

    monkeypatch.setattr(one_file, "ask", ask)
    monkeypatch.setattr(one_file, "bypassed", Bypassed)
    found = one_file.layers_by_ablation(*pair, [["attack"] * 3], [["benign"] * 3])
    assert found == [2, 3]
    assert at == list(range(tiny.LAYERS))


# -- attribute -------------------------------------------------------------------------------------


@given(n=st.integers(2, 12), t=st.integers(2, 9), seed=st.integers(0, 99))
@settings(deadline=None)
def test_scores_rank_as_those_of_the_package(one_file, n, t, seed):
    rng = np.random.default_rng(seed)
    tokens, words = rng.standard_normal((n, 6)), rng.standard_normal((t, 6))

    def unit(s):
        return (s - s.min()) / np.ptp(s) if np.ptp(s) > 1e-12 else np.zeros_like(s)

    ours = unit(one_file.scores(tokens, words))
    np.testing.assert_allclose(ours, cross_scores(tokens, words), atol=1e-9)
    np.testing.assert_allclose(unit(one_file.scores(tokens)), self_scores(tokens), atol=1e-9)


@pytest.mark.parametrize("pictures", [True, False])
def test_rows_are_those_of_the_package(one_file, pair, vlm, pictures, monkeypatch):
    monkeypatch.setattr(one_file, "VISUAL_SHARE", 0.5)  # of four visual tokens two
    config = AttributionConfig(visual_share=0.5)
    answered = [a for a in material().complied if a[0].images or not pictures]
    found = one_file.rows_of(*pair, answered, LAYERS, pictures)
    sites = [Site(layer, "ffn_out") for layer in LAYERS]
    scope = "image" if pictures else "response"
    expected = activations(vlm, answered, sites, scope, attribution=config)
    for site in sites:
        np.testing.assert_allclose(found[site.layer], expected[site], rtol=1e-3, atol=1e-4)


# -- fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(30, 40), (60, 25)])
def test_a_channel_is_that_of_the_package(one_file, monkeypatch, sizes):
    monkeypatch.setattr(one_file, "RANK", 3)
    rng = np.random.default_rng(0)
    spread = np.arange(1, 21) ** -0.5
    malicious, benign = (spread * rng.standard_normal((n, 20)) for n in sizes)
    malicious[:, 15:] += 2 * rng.standard_normal((len(malicious), 5))
    channel = one_file.fit_channel(malicious, benign)
    moments = (Moments(20).fit(rows) for rows in (malicious, benign))
    expected = fit_subspace(*moments, small().subspace)
    assert principal_angles(channel.u, expected.basis).max() < 1e-3
    np.testing.assert_allclose(channel.anchor, expected.mean, atol=1e-6)


def test_the_fit_is_that_of_the_package(one_file, pair, vlm, monkeypatch):
    monkeypatch.setattr(one_file, "RANK", 3)
    found = material()
    classes = (found.complied, found.refused, found.answered)
    repair = one_file.fit(*pair, LAYERS, classes)
    sites = [Site(layer, "ffn_out") for layer in LAYERS]
    expected = Fitter(vlm, found, small(), batch_size=7).repair(sites)
    assert list(repair) == [site.layer for site in expected.sites]
    for layer, channels in repair.items():
        others = [channel for channel in expected.channels if channel.site.layer == layer]
        assert [channel.modality for channel in others] == ["image", "text"]
        for channel, other in zip(channels, others, strict=True):
            assert principal_angles(channel.u, other.subspace.basis).max() < 1e-2
            np.testing.assert_allclose(channel.anchor, other.subspace.mean, atol=1e-3)


# -- edit ------------------------------------------------------------------------------------------


def drawn(one_file, seed, rank=3):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((tiny.WIDTH, rank)))
    return one_file.Channel(q, rng.standard_normal(tiny.WIDTH))


def as_package(channel, layer, modality):
    u, anchor = (part.astype(np.float32) for part in channel)
    return Channel(Site(layer, "ffn_out"), modality, ("all",), Subspace(u, anchor, np.empty(0)))


def test_the_edit_is_that_of_the_package(one_file, pair, vlm):
    examples = [e for e in tiny.mixed_examples(6) if e.images]
    repair = {i: [drawn(one_file, i), drawn(one_file, i + 9, rank=1)] for i in LAYERS}
    same = Repair(
        tuple(
            as_package(channel, layer, modality)
            for layer, of_layer in repair.items()
            for channel, modality in zip(of_layer, ("image", "text"), strict=True)
        )
    )
    plain = vlm.forward(vlm.batch(examples), logits_to_keep=1)
    inputs, _ = one_file.encode(*pair, examples)
    with one_file.repaired(pair[0], repair), torch.no_grad():
        logits = pair[0](**inputs, logits_to_keep=1).logits
        answers = one_file.ask(*pair, examples, tokens=5)
    with same.applied(vlm):
        expected = vlm.forward(vlm.batch(examples), logits_to_keep=1)
        assert vlm.generate(examples, max_new_tokens=5) == answers
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain, expected, atol=0.1)
    assert torch.equal(vlm.forward(vlm.batch(examples), logits_to_keep=1), plain)


def test_the_random_control_differs_in_its_directions_alone(one_file):
    repair = {2: [drawn(one_file, 5)]}
    [other] = one_file.at_random(repair)[2]
    assert other.anchor is repair[2][0].anchor
    assert other.u.shape == repair[2][0].u.shape
    np.testing.assert_allclose(other.u.T @ other.u, np.eye(3), atol=1e-12)
    assert principal_angles(other.u, repair[2][0].u).max() > 0.1


def test_the_whole_run_on_the_tiny_model(one_file, pair, monkeypatch, capsys):
    monkeypatch.setattr(one_file, "load", lambda: pair)
    monkeypatch.setattr(one_file, "refuses", lambda answer: len(answer) % 2 == 0)
    monkeypatch.setattr(one_file, "ATTACKS", ("text-jailbreak", "pictured-goal"))
    monkeypatch.setattr(one_file, "BENIGN", ("benign", "benign-image"))
    monkeypatch.setattr(one_file, "RANK", 2)
    words = ["paper_in_one_file", "--fit", "12", "--ablate", "2", "--test", "2"]
    monkeypatch.setattr("sys.argv", words)
    one_file.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("layers by ablation: ") for line in lines)
    count = len(one_file.ATTACKS) + len(one_file.BENIGN)
    assert [line.split()[0] for line in lines[-count:]] == [*one_file.ATTACKS, *one_file.BENIGN]
    assert all(len(line.split()) == 5 for line in lines[-count:])
