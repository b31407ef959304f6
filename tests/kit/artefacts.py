"""A repair with a gate, and changes to its artefact that keep the digest right."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from care.defenses.artefact import save
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.models.sites import Site
from kit import tiny
from kit.repairs import a_gate

NUMBERS, FACTS = "repair.safetensors", "repair.json"


def subspace(width=tiny.WIDTH, rank=3, seed=0, **facts):
    """Random directions with figures as those of a fit."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.random(rank + 2))[::-1] / 3
    found = random_subspace(width, rank, rng.standard_normal(width), seed)
    return replace(found, eigenvalues=values, **facts)


def made(width=tiny.WIDTH, manifest=None, strength=1.0):
    """A repair with a gated channel and one that always acts."""
    facts = {"null_quantile": 1 / 3, "significant": 2, "shrinkage": 0.1, "condition": 1e9}
    gated = Channel(
        Site(1, "ffn_out"),
        "text",
        ("text", "response"),
        subspace(width, n_malicious=40, n_benign=50, **facts),
        strength,
        a_gate(
            width=width,
            families=("pgd-32", "schöne Worte"),
            opened={"pgd-32": 1.0, "schöne Worte": 1 / 3},
            opened_benign=0.005,
            quantile=0.995,
        ),
    )
    ungated = Channel(Site(0, "layer_out"), "image", ("image",), subspace(width, 2, 1))
    return Repair((gated, ungated), "adaptive", "ünïcode", manifest or {})


@pytest.fixture
def folder(tmp_path):
    """An artefact of it."""
    return save(made(), tmp_path / "repair")


def rewrite(folder, change_facts=None, change_tensors=None):
    """Change an artefact, and its digest with it."""
    facts = json.loads((folder / FACTS).read_text())
    tensors = {name: value.copy() for name, value in load_tensors(numbers(folder)).items()}
    if change_tensors:
        change_tensors(tensors)
    if change_facts:
        change_facts(facts)
    (folder / NUMBERS).write_bytes(save_tensors(tensors))
    return state(folder, facts)


def state(folder, facts):
    """Write facts with the digest of them and of the numbers that are there."""
    others = {key: value for key, value in facts.items() if key != "sha256"}
    told = json.dumps(others, sort_keys=True, separators=(",", ":")).encode()
    facts["sha256"] = hashlib.sha256(told + b"\n" + numbers(folder)).hexdigest()
    (folder / FACTS).write_text(json.dumps(facts))
    return folder


def numbers(folder):
    return (folder / NUMBERS).read_bytes()
