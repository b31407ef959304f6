"""The example in one file computes the same as the package."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from care.anatomy import Role, Site, scope_mask
from care.contrast import activations
from care.hooks import read
from care.moments import Moments
from care.repair import Channel, Repair
from care.subspace import Subspace, SubspaceConfig, fit_subspace, principal_angles
from care.vlm import VLM

PATH = Path(__file__).parents[1] / "examples" / "care_in_one_file.py"
IMAGE_LAYER, TEXT_LAYERS = 0, (1, 2)
PICTURED = [example for example in tiny.mixed_examples(6) if example.images]
PLAIN = [example for example in tiny.mixed_examples(6) if not example.images]
both = pytest.mark.parametrize("examples", [PICTURED, PLAIN], ids=["pictured", "plain"])


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


def drawn(one_file, seed, rank=3):
    """A random channel whose write directions aren't its filters."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((tiny.WIDTH, rank)))
    return one_file.Channel(q, rng.standard_normal(q.shape), rng.standard_normal(tiny.WIDTH))


def rows_of(rng, n, shift=0.0):
    return rng.standard_normal((n, tiny.WIDTH)) * np.arange(1, tiny.WIDTH + 1) ** -0.5 + shift


@both
def test_answers_are_those_of_the_package(one_file, pair, vlm, examples):
    assert one_file.ask(*pair, examples, tokens=5) == vlm.generate(examples, max_new_tokens=5)


@both
def test_activations_are_those_of_the_package(one_file, pair, vlm, examples):
    decided, pictures = one_file.read(*pair, examples, TEXT_LAYERS, IMAGE_LAYER)
    sites = [Site(layer, "layer_out") for layer in TEXT_LAYERS]
    expected = activations(vlm, [(example, "") for example in examples], sites, "decision")
    for site in sites:
        np.testing.assert_allclose(decided[site.layer], expected[site], atol=1e-4)
    site, batch = Site(IMAGE_LAYER, "layer_out"), vlm.batch(examples)
    with read(vlm, [site], ["image"]) as recorder:
        vlm.forward(batch, logits_to_keep=1)
    assert pictures.shape == (int((batch.roles == Role.IMAGE).sum()), tiny.WIDTH)
    np.testing.assert_allclose(pictures, recorder.rows(site), atol=1e-4)


@pytest.mark.parametrize("n", [15, 200])
def test_filters_are_those_of_the_package(one_file, n):
    rng = np.random.default_rng(0)
    families = [rows_of(rng, n, 0.5), rows_of(rng, n, -1.0)]
    benign = rows_of(rng, n)
    q, w, mean = one_file.filters(families, benign, 4)
    moments = [Moments(tiny.WIDTH).fit(part) for part in (np.concatenate(families), benign)]
    config = SubspaceConfig(rank=4, shrinkage=one_file.SHRINKAGE)
    expected = fit_subspace(moments[0], moments[1], config)
    assert principal_angles(q, expected.basis).max() < 1e-5
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-6)
    assert w is q


def test_patterns_solve_the_regression(one_file, monkeypatch):
    monkeypatch.setattr(one_file, "RIDGE", 0.0)
    rng = np.random.default_rng(0)
    families = [rows_of(rng, 30, 1.0), rows_of(rng, 50, -1.0)]
    refused, benign = rows_of(rng, 20), rows_of(rng, 60)
    channel = one_file.filters(families, benign, 3)
    q, w, mean = one_file.with_patterns(channel, families, refused, benign)
    assert q is channel.q and mean is channel.mean
    inputs, targets = [(benign - mean) @ q / 60**0.5], [np.zeros((60, tiny.WIDTH))]
    for rows in families:
        weight = (2 * len(rows)) ** -0.5
        inputs.append(weight * (rows - mean) @ q)
        step = rows.mean(0) - refused.mean(0)
        targets.append(np.broadcast_to(weight * step, rows.shape))
    solution, *_ = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)
    np.testing.assert_allclose(w, solution.T, atol=1e-10)


@both
def test_the_edit_is_that_of_the_package(one_file, pair, vlm, examples):
    repair = {layer: drawn(one_file, layer) for layer in (IMAGE_LAYER, *TEXT_LAYERS)}
    channels = []
    for layer, (q, w, mean) in repair.items():
        modality, scope = ("image", "image") if layer == IMAGE_LAYER else ("text", "decision")
        subspace = Subspace(q.astype(np.float32), mean.astype(np.float32), np.empty(0))
        site, pattern = Site(layer, "layer_out"), w.astype(np.float32)
        strength = 1.0 if layer == IMAGE_LAYER else one_file.STRENGTH
        channels.append(Channel(site, modality, (scope,), subspace, strength, pattern=pattern))
    plain = vlm.forward(vlm.batch(examples), logits_to_keep=1)
    inputs = one_file.encode(*pair, examples)
    with one_file.repaired(pair[0], repair, IMAGE_LAYER), torch.no_grad():
        logits = pair[0](**inputs, logits_to_keep=1).logits
        answers = one_file.ask(*pair, examples, tokens=5)
    with Repair(tuple(channels)).applied(vlm):
        expected = vlm.forward(vlm.batch(examples), logits_to_keep=1)
        assert vlm.generate(examples, max_new_tokens=5) == answers
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain, expected, atol=0.1)
    assert torch.equal(vlm.forward(vlm.batch(examples), logits_to_keep=1), plain)


def test_the_edit_touches_image_tokens_and_the_deciding_position_only(one_file, pair, vlm):
    batch = vlm.batch(PICTURED)
    for layer, scope in ((IMAGE_LAYER, "image"), (TEXT_LAYERS[0], "decision")):
        site, repair = Site(layer, "layer_out"), {layer: drawn(one_file, layer)}
        with (
            read(vlm, [site]) as before,
            one_file.repaired(pair[0], repair, IMAGE_LAYER),
            read(vlm, [site]) as after,
        ):
            vlm.forward(batch)
        changed = (before[site][0] != after[site][0]).any(-1)
        assert torch.equal(changed, scope_mask(batch.roles, [scope]))


def test_the_edit_is_taken_off_after_an_exception(one_file, pair, vlm):
    plain = vlm.forward(vlm.batch(PLAIN))
    repair = {1: drawn(one_file, 0)}
    with pytest.raises(ZeroDivisionError), one_file.repaired(pair[0], repair, IMAGE_LAYER):
        raise ZeroDivisionError
    assert torch.equal(vlm.forward(vlm.batch(PLAIN)), plain)


def test_the_random_control_has_the_same_rank_and_mean(one_file):
    channel = drawn(one_file, 0)
    q, w, mean = one_file.random_filters(channel, seed=7)
    assert w is q and q.shape == channel.q.shape and mean is channel.mean
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-12)
    assert principal_angles(q, channel.q).max() > 0.1


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
    monkeypatch.setattr(one_file, "TEXT_LAYERS", TEXT_LAYERS)
    monkeypatch.setattr(one_file, "IMAGE_LAYER", IMAGE_LAYER)
    monkeypatch.setattr(one_file, "answered", lambda answer: len(answer) % 2 == 0)
    options = ["--fit", "4", "--test", "2", "--rank", "2"]
    monkeypatch.setattr("sys.argv", ["care_in_one_file", *options])
    one_file.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-10:]] == [*one_file.ATTACKS, *one_file.BENIGN]
    assert all(len(line.split()) == 6 for line in lines[-10:])
