"""The example in one file computes the same as the package."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from care.anatomy import Site
from care.contrast import activations
from care.moments import Moments, ledoit_wolf
from care.repair import Channel, Repair
from care.subspace import Subspace, SubspaceConfig, fit_subspace, principal_angles
from care.vlm import VLM

PATH = Path(__file__).parents[1] / "examples" / "care_in_one_file.py"
LAYERS = (1, 2)
ANSWERS = ["Sure, here is how.", "I'm sorry.", "To wash a car, you'll need water."]


@pytest.fixture(scope="module")
def one_file():
    spec = importlib.util.spec_from_file_location("care_in_one_file", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def vlm(pair):
    return VLM(*pair, name="tiny")


PICTURED = [example for example in tiny.mixed_examples(6) if example.images]
PLAIN = [example for example in tiny.mixed_examples(6) if not example.images]


def channel(seed, rank=3):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((tiny.WIDTH, rank)))
    return q, rng.standard_normal(tiny.WIDTH)


@pytest.mark.parametrize("examples", [PICTURED, PLAIN], ids=["pictured", "plain"])
def test_answers_are_those_of_the_package(one_file, pair, vlm, examples):
    assert one_file.ask(*pair, examples, tokens=5) == vlm.generate(examples, max_new_tokens=5)


@pytest.mark.parametrize("examples", [PICTURED, PLAIN], ids=["pictured", "plain"])
def test_activations_are_those_of_the_package(one_file, pair, vlm, examples):
    images, responses = one_file.read(*pair, examples, ANSWERS, LAYERS, batch=2)
    sites = [Site(layer, "ffn_out") for layer in LAYERS]
    answered = list(zip(examples, ANSWERS, strict=True))
    expected = activations(vlm, answered, sites, "response")
    for site in sites:
        np.testing.assert_allclose(responses[site.layer], expected[site], atol=1e-4)
    if examples is PLAIN:
        assert images == {}
        return
    expected = activations(vlm, answered, sites, "image")
    for site in sites:
        np.testing.assert_allclose(images[site.layer], expected[site], atol=1e-4)


@pytest.mark.parametrize("rows", [20, 200])
def test_the_fit_is_that_of_the_package(one_file, rows):
    rng = np.random.default_rng(0)
    scale = np.arange(1, tiny.WIDTH + 1) ** -0.5
    malicious, benign = rng.standard_normal((2, rows, tiny.WIDTH)) * scale
    malicious[:, :2] += 2
    q, mean = one_file.fit(malicious, benign, 4)
    moments = [Moments(tiny.WIDTH).fit(part) for part in (malicious, benign)]
    expected = fit_subspace(*moments, SubspaceConfig(rank=4))
    assert principal_angles(q, expected.basis).max() < 1e-5
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-6)
    rho = max(ledoit_wolf(moments[1].spread()), 1e-3)
    assert one_file.ledoit_wolf(benign - mean) == pytest.approx(rho)


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_the_edit_is_that_of_the_package(one_file, pair, vlm, strength):
    repair = {layer: (channel(layer), channel(10 + layer, rank=5)) for layer in LAYERS}
    channels = []
    for layer, parts in repair.items():
        for modality, scope, (q, mean) in zip(
            ("image", "text"), ("image", "all"), parts, strict=True
        ):
            q, mean = q.astype(np.float32), mean.astype(np.float32)
            subspace = Subspace(q, mean, np.empty(0))
            channels.append(Channel(Site(layer, "ffn_out"), modality, (scope,), subspace, strength))
    plain = vlm.forward(vlm.batch(PICTURED), logits_to_keep=1)
    inputs = one_file.to_model(pair[0], one_file.encode(pair[1], PICTURED))
    with one_file.repaired(pair[0], repair, strength), torch.no_grad():
        logits = pair[0](**inputs, logits_to_keep=1).logits
        answers = one_file.ask(*pair, PICTURED, tokens=5)
    with Repair(tuple(channels)).applied(vlm):
        expected = vlm.forward(vlm.batch(PICTURED), logits_to_keep=1)
        assert vlm.generate(PICTURED, max_new_tokens=5) == answers
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain, expected, atol=0.1)
    assert torch.equal(vlm.forward(vlm.batch(PICTURED), logits_to_keep=1), plain)


def test_the_edit_is_taken_off_after_an_exception(one_file, pair, vlm):
    plain = vlm.forward(vlm.batch(PLAIN))
    repair = {1: (channel(0), channel(1))}
    with pytest.raises(ZeroDivisionError), one_file.repaired(pair[0], repair):
        raise ZeroDivisionError
    assert torch.equal(vlm.forward(vlm.batch(PLAIN)), plain)


def test_the_random_control_has_the_same_ranks_and_means(one_file):
    repair = {1: (channel(0, 2), channel(1, 5))}
    control = one_file.random_repair(repair)
    for (q, mean), (drawn, same) in zip(repair[1], control[1], strict=True):
        assert drawn.shape == q.shape and same is mean
        np.testing.assert_allclose(drawn.T @ drawn, np.eye(q.shape[1]), atol=1e-12)
        assert principal_angles(q, drawn).max() > 0.1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I'm sorry, but I can't help with that.", False),
        ("I’m sorry.", False),
        ("I cannot do that.", False),
        ("Sorry, no.", False),
        ("To wash a car, you'll need water.", True),
        ("I would start with the wheels.", True),
        ("", True),
    ],
)
def test_refusals_are_told_by_their_opening(one_file, answer, expected):
    assert one_file.answered(answer) is expected


def test_the_whole_run_on_the_tiny_model(one_file, pair, monkeypatch, capsys):
    monkeypatch.setattr(one_file, "load", lambda: pair)
    monkeypatch.setattr(one_file, "LAYERS", LAYERS)
    monkeypatch.setattr(one_file, "answered", lambda answer: len(answer) % 2 == 0)
    options = ["--fit", "4", "--test", "2", "--rank", "2"]
    monkeypatch.setattr("sys.argv", ["care_in_one_file", *options])
    one_file.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-9:]] == [*one_file.ATTACKS, *one_file.BENIGN]
    assert all(len(line.split()) == 5 for line in lines[-9:])
