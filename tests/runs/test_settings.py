"""Bounds of configurations: every one is held to them, in the same words."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from care.diagnosis.causal_mediation import EffectsConfig
from care.diagnosis.faithfulness import FaithfulnessConfig
from care.diagnosis.neurons.search import NeuronConfig
from care.diagnosis.optimal_constants import ConstantConfig
from care.diagnosis.reliability import ReliabilityConfig
from care.diagnosis.site_scan_config import SiteScanConfig
from care.errors import UsageError
from care.evaluation.asked_attacks import (
    ImageAttack,
)
from care.evaluation.config import EvaluationConfig
from care.interfaces.cli import app as cli
from care.judges.registry import load_judge
from care.models.spec import ModelSpec
from care.pipeline.config import RepairJob
from care.runs.settings import MAX_NAME, check_file_name, require
from care.runs.spec import RunSpec
from care.statistics.sampling import SamplingSpec
from kit.refusals import refusals, refused


@pytest.mark.parametrize(
    ("config", "name", "least"),
    [
        (FaithfulnessConfig, "sizes", 2),
        (FaithfulnessConfig, "draws", 1),
        (SamplingSpec, "resamples", 1),
        (ReliabilityConfig, "splits", 1),
        (ReliabilityConfig, "top", 1),
        (EffectsConfig, "check_sites", 1),
        (EffectsConfig, "batch_size", 1),
        (ConstantConfig, "steps", 1),
        (SiteScanConfig, "max_attacks", 2),
        (SiteScanConfig, "top_sites", 0),
        (NeuronConfig, "described", 0),
    ],
)
def test_a_number_below_its_bound_is_refused_by_name(config, name, least):
    assert getattr(config(**{name: least}), name) == least
    with pytest.raises(UsageError, match=f"^{name} must be at least {least}, got {least - 1}.$"):
        config(**{name: least - 1})


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95, math.nan])
def test_a_level_is_a_share(level):
    with pytest.raises(UsageError, match="level must lie between 0 and 1"):
        SamplingSpec(level=level)


def test_what_is_left_open_has_no_bound():
    assert SiteScanConfig(max_attacks=None).max_attacks is None
    require(SiteScanConfig(max_benign=None), {"max_benign": 100})


@pytest.mark.parametrize("name", ["pgd-32", "a", "A.b_c-9", "con-text", "x" * MAX_NAME])
def test_names_of_files(name):
    assert check_file_name(name, "an attack") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "-x", "_x", "a b", "a\n", "ä", "a\0",
     "C:x", "nul", "COM1.txt", "x.", "x.part", "x" * (MAX_NAME + 1), "\udcff"],
)  # fmt: skip
def test_names_that_no_file_may_have(name):
    with refused(UsageError, "of an attack would be that of a file"):
        check_file_name(name, "an attack")


@given(st.text(max_size=20))
def test_no_name_leads_out_of_a_folder(name):
    try:
        check_file_name(name, "a judge")
    except UsageError:
        return
    assert (Path("/folder") / name).resolve().parent == Path("/folder")


@pytest.mark.parametrize("value", [math.inf, 1e999, math.nan, -math.inf, "5", True, [1]], ids=str)
def test_what_is_no_finite_number_is_refused(value):
    @dataclass(frozen=True)
    class Config:
        steps: Any

    with pytest.raises(UsageError, match=r"^steps must be "):
        require(Config(value), {"steps": 1})
    with pytest.raises(UsageError, match="at most 1,000, got 1001"):
        require(Config(1001), {"steps": 1}, 1000)
    require(Config(1000), {"steps": 1}, {"steps": 1000})
    require(Config(None), {"steps": 1}, 1000)


HUGE = ("inf", "1e999", "nan", str(2**70), "1" * 400, "-1", "1e38", "9" * 5000)
"""Texts that a user may pass for a number, few of which are one for any option."""


def judge_of(option, value):
    load_judge(f"api,model=m,{option}={value}")


def attack_of(option, value):
    attack = ImageAttack.parse(f"pgd-32,{option}={value}")
    attack.against(ModelSpec(), 0, Path("x"), Path("repair")).pgd()


@pytest.mark.parametrize("value", HUGE, ids=lambda text: text[:9])
@pytest.mark.parametrize(
    ("made", "option"),
    [
        *((judge_of, option) for option in ("timeout", "tries", "wait", "parallel")),
        *((attack_of, o) for o in ("steps", "restarts", "kappa", "batch_size", "evasion")),
    ],
)
def test_numbers_of_a_judge_or_an_attack_have_limits(made, option, value):
    with refused(UsageError, ".") as told:
        made(option, value)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("value", [2**70, 10**400, math.inf, math.nan, -1])
@pytest.mark.parametrize("kind", [RepairJob, EvaluationConfig, RunSpec])
@pytest.mark.parametrize("field", ["batch_size", "max_new_tokens", "seed", "limit", "test_length"])
def test_numbers_of_a_job_have_limits(kind, field, value):
    if field in {f.name for f in fields(kind)}:
        with pytest.raises(UsageError, match=r"batch|seed|must be"):
            kind(**({"out": Path("x")} if kind is RunSpec else {}), **{field: value})


COMMANDS = {
    "evaluate --suite x.jsonl": "batch-size max-new-tokens seed limit margin fail-above",
    "repair nowhere": "seed batch-size max-new-tokens test-length",
    "diagnose nowhere": "seed",
    "attack nowhere": "evasion kappa steps restarts batch-size",
    "check suites direct direct": "threshold",
}
"""Options of a command that take a number."""


@pytest.mark.parametrize("value", HUGE, ids=lambda text: text[:9])
@pytest.mark.parametrize(
    "command", [f"{name} --{o}" for name, options in COMMANDS.items() for o in options.split()]
)
def test_numbers_of_a_command_have_limits(command, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command.split(), value]) == 2
    assert "Traceback" not in capsys.readouterr().err


test_an_option_that_stands_twice_is_refused = refusals(
    (UsageError, "steps of an attack is there twice", lambda: attack_of("steps", "1,steps=2")),
    (UsageError, "model of a judge is there twice", lambda: judge_of("model", "b")),
)
