"""Random channels with and without gates, and what a repair has to make of activations.

The formula of `care.defenses.repair.edit`'s header is written down here once more, plainly and in
float64: with D × D matrices, one channel after the other, and norms of whole corrections.
"""

from dataclasses import replace

import numpy as np
import torch

from care.defenses.repair.channel import Channel
from care.defenses.repair.gate import FourierFeatures, Gate
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import oblique, random_subspace
from care.models.hooks import edit, read
from care.models.sites import Site, scope_mask
from kit import tiny

SITE = Site(1, "ffn_out")
SITES = (Site(1, "layer_out"), Site(2, "ffn_out"), Site(2, "mhsa_out"))
FULLY_OPEN, SHUT = (-2e5, -1e5), (1e5, 2e5)
"""Thresholds far below and far above every score."""


def made(site=SITE, scopes=("all",), rank=3, seed=0, width=tiny.WIDTH, modality="text", **options):
    """A channel with random directions about a random mean."""
    mean = np.random.default_rng(seed + 100).standard_normal(width)
    return Channel(site, modality, scopes, random_subspace(width, rank, mean, seed), **options)


def repair(seed=0, scopes=("decision",), sites=SITES):
    """Random directions, strong enough to change what a tiny model says."""
    channels = []
    for place, site in enumerate(sites):
        drawn = random_subspace(tiny.WIDTH, 16, np.zeros(tiny.WIDTH), seed=seed + 100 * place)
        channels.append(Channel(site, "text", scopes, drawn, strength=1.5))
    return Repair(tuple(channels), name=f"random {seed}")


def skewed(rank=3, seed=0, **options):
    """A channel whose directions aren't orthonormal."""
    channel = made(rank=rank, seed=seed, **options)
    mix = np.eye(rank) + 0.3 * np.random.default_rng(seed).standard_normal((rank, rank))
    basis = (channel.subspace.basis @ mix).astype(np.float32)
    return replace(channel, subspace=replace(channel.subspace, basis=basis))


def slanted(rank=3, seed=0, **options):
    """A channel whose edit is oblique: it reads along Q and writes along W, with Qᵀ W = I."""
    channel = made(rank=rank, seed=seed, **options)
    basis = channel.subspace.basis.astype(np.float64)
    factor = np.random.default_rng(seed).standard_normal((len(basis), len(basis)))
    covariance = factor @ factor.T / len(basis) + np.eye(len(basis))
    write = oblique(basis, covariance @ basis)
    return replace(channel, subspace=replace(channel.subspace, write=write))


def a_gate(count=2, seed=0, width=tiny.WIDTH, thresholds=None, **facts):
    """A gate whose scores of standard normal h are about as often shut, half and fully open."""
    rng = np.random.default_rng(seed + 300)
    low = rng.uniform(-0.5, 1.0, count)
    high = low + rng.uniform(0.3, 1.5, count)
    if thresholds is not None:
        low, high = (np.full(count, value) for value in thresholds)
    filters = rng.standard_normal((width, count)) / np.sqrt(width)
    numbers = (filters, 0.1 * rng.standard_normal(width), low, high)
    return Gate(*(part.astype(np.float32) for part in numbers), **facts)


def a_nonlinear_gate(count=2, seed=0, width=tiny.WIDTH, features=20):
    """A gate whose filters are of random Fourier features."""
    gate = a_gate(count, seed, features)
    rows = np.random.default_rng(seed + 400).standard_normal((60, width))
    filters = (4 * gate.filters).astype(np.float32)
    return replace(gate, filters=filters, features=FourierFeatures.drawn(rows, features, seed))


def exact(part):
    return torch.as_tensor(part).double()


def openness(channel, h):
    """g(h) (..., 1), one filter after the other."""
    gate = channel.gate
    if gate is None:
        return torch.ones_like(h[..., :1]).double()
    found = torch.zeros_like(h[..., :1]).double()
    if gate.features is not None:
        weights, phases = exact(gate.features.weights), exact(gate.features.phases)
        h = (2 / len(phases)) ** 0.5 * torch.cos(h.double() @ weights + phases)
    for place in range(len(gate.low)):
        z = (h.double() - exact(gate.mean)) @ exact(gate.filters[:, place, None])
        low, high = float(gate.low[place]), float(gate.high[place])
        found = torch.maximum(found, ((z - low) / (high - low)).clamp(0, 1))
    return found


def correction(channel, h):
    """c(h) by D × D matrices."""
    q = exact(channel.subspace.basis)
    w = q if channel.subspace.write is None else exact(channel.subspace.write)
    step = (h.double() - exact(channel.subspace.mean)) @ q @ w.T
    return -channel.strength * openness(channel, h) * step


def plain(channels, fusion, h, roles):
    """h' of all channels of one site."""
    if fusion == "none":
        for channel in channels:
            h = h.double() + correction(channel, h) * scope_mask(roles, channel.scopes)[..., None]
        return h
    steps = [correction(c, h) * scope_mask(roles, c.scopes)[..., None] for c in channels]
    if fusion == "sum" or len(steps) == 1:
        return h.double() + sum(steps)
    if fusion == "constant":
        return h.double() + sum(steps) / max(1, sum(c.strength > 0 for c in channels))
    norms = [step.norm(dim=-1, keepdim=True) for step in steps]
    weights = [torch.nan_to_num(norm / sum(norms)) for norm in norms]
    return h.double() + sum(w * step for w, step in zip(weights, steps, strict=True))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


def before_after(vlm, repair, batch, site=SITE):
    """Activations (B, T, D) at `site` without and with the repair there, in one pass."""
    with read(vlm, [site]) as before, repair.applied(vlm), read(vlm, [site]) as after:
        vlm.forward(batch)
    return before[site][0], after[site][0]


def repaired(vlm, repair, h, batch, site=SITE):
    """What the repair makes of given activations h (B, T, D)."""
    with edit(vlm, {site: lambda _, roles: h}), repair.applied(vlm), read(vlm, [site]) as after:
        vlm.forward(batch, grad=h.requires_grad)
    return after[site][0]
