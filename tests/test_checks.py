"""Bounds of configurations: every one is held to them, in the same words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.checks import MAX_NAME, check_file_name, require, require_level
from care.constants import ConstantConfig
from care.diagnosis import DiagnosisConfig
from care.effects import EffectsConfig
from care.errors import UsageError
from care.faithfulness import FaithfulnessConfig
from care.neuron_report import NeuronConfig
from care.stability import StabilityConfig


@pytest.mark.parametrize(
    ("config", "name", "least"),
    [
        (FaithfulnessConfig, "sizes", 2),
        (FaithfulnessConfig, "draws", 1),
        (FaithfulnessConfig, "resamples", 1),
        (StabilityConfig, "splits", 1),
        (StabilityConfig, "top", 1),
        (EffectsConfig, "check_sites", 1),
        (EffectsConfig, "batch_size", 1),
        (ConstantConfig, "steps", 1),
        (DiagnosisConfig, "max_attacks", 2),
        (DiagnosisConfig, "top_sites", 0),
        (NeuronConfig, "described", 0),
    ],
)
def test_a_number_below_its_bound_is_refused_by_name(config, name, least):
    assert getattr(config(**{name: least}), name) == least
    with pytest.raises(UsageError, match=f"^{name} must be at least {least}, got {least - 1}.$"):
        config(**{name: least - 1})


@pytest.mark.parametrize(
    "config", [FaithfulnessConfig, StabilityConfig, EffectsConfig, DiagnosisConfig, NeuronConfig]
)
@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95, math.nan])
def test_a_level_is_a_share(config, level):
    with pytest.raises(UsageError, match="level must lie between 0 and 1"):
        config(level=level)
    require_level(0.5)


def test_what_is_left_open_has_no_bound():
    assert DiagnosisConfig(max_attacks=None).max_attacks is None
    require(DiagnosisConfig(max_benign=None), {"max_benign": 100})


@pytest.mark.parametrize("name", ["pgd-32", "a", "A.b_c-9", "con-text", "x" * MAX_NAME])
def test_names_of_files(name):
    assert check_file_name(name, "an attack") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "-x", "_x", "a b", "a\n", "ä", "a\0",
     "C:x", "nul", "COM1.txt", "x.", "x.part", "x" * (MAX_NAME + 1), "\udcff"],
)  # fmt: skip
def test_names_that_no_file_may_have(name):
    with pytest.raises(UsageError, match="of an attack would be that of a file") as caught:
        check_file_name(name, "an attack")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=20))
def test_no_name_leads_out_of_a_folder(name):
    try:
        check_file_name(name, "a judge")
    except UsageError:
        return
    assert (Path("/folder") / name).resolve().parent == Path("/folder")
