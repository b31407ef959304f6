"""Gates in artefacts: numbers and facts that make no gate are refused in one sentence."""

from dataclasses import replace

import numpy as np
import pytest

from care.defenses.artefact import load, save
from care.errors import ArtefactError
from kit import tiny
from kit.artefacts import folder, made, rewrite  # noqa: F401


def refused(folder, match):
    """Assert that loading is refused in one sentence."""
    with pytest.raises(ArtefactError, match=match) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message and "Gate.__init__" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.5), (0.5, 0.25), (1e8, -1e8), (0.0, 1e-44)], ids=str
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_gate_that_cannot_open_gradually_is_refused(folder, place, low, high):
    def spoil(tensors):
        tensors["channels.0.gate.low"][place] = low
        tensors["channels.0.gate.high"][place] = high

    refused(rewrite(folder, change_tensors=spoil), "low")


def test_a_gate_without_filters_is_refused(folder):
    def spoil(tensors):
        for name in ("filters", "low", "high"):
            tensors[f"channels.0.gate.{name}"] = tensors[f"channels.0.gate.{name}"][..., :0]

    refused(rewrite(folder, change_tensors=spoil), "filters")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"families": ["pgd-32"]}, "2 filters .* 1: pgd-32"),
        ({"families": ["a", "b", "c"]}, "2 filters .* 3: a, b, c"),
        ({"families": "ab"}, "families` is 'ab'; it must be a list"),
        ({"families": [1, 2]}, r"families\[0\]` is 1; it must be a string"),
        ({"families": None}, "families` is None; it must be a list"),
        ({"families": {"a": 1, "b": 2}}, "families` is .*; it must be a list"),
        ({"opened": None}, "opened` is .* an object"),
        ({"opened": [0.5, 0.5]}, "opened` is .* an object"),
        ({"opened": 0.5}, "opened` is .* an object"),
        ({"opened": {"pgd-32": 1.01}}, r"opened\['pgd-32'\]` is 1.01; it must"),
        ({"opened": {"pgd-32": -0.1}}, r"opened\['pgd-32'\]` is -0.1; it must"),
        ({"opened": {"pgd-32": "1"}}, r"opened\['pgd-32'\]` is '1'; it must"),
        ({"opened": {"pgd-32": None}}, r"opened\['pgd-32'\]` is None; it must"),
        ({"opened": {"pgd-32": True}}, r"opened\['pgd-32'\]` is True; it must"),
        ({"opened": {"pgd-32": [1]}}, "opened"),
        ({"opened_benign": 2}, "opened_benign` is 2; it must"),
        ({"opened_benign": "0.1"}, "opened_benign` is '0.1'; it must"),
        ({"opened_benign": [0.1]}, "opened_benign"),
        ({"quantile": "0.995"}, "quantile` is '0.995'; it must"),
        ({"quantile": 99.5}, "quantile` is 99.5; it must"),
        ({"quantile": False}, "quantile` is False; it must"),
        ({"quantile": {}}, "quantile"),
    ],
    ids=str,
)
def test_facts_of_a_gate_that_make_no_sense_are_refused(folder, change, match):
    refused(rewrite(folder, lambda facts: facts["channels"][0]["gate"].update(change)), match)


@pytest.mark.parametrize("fact", ["families", "opened", "opened_benign", "quantile"])
def test_a_missing_fact_of_a_gate_is_named(folder, fact):
    refused(rewrite(folder, lambda facts: facts["channels"][0]["gate"].pop(fact)), fact)


@pytest.mark.parametrize("value", [True, 0, "pgd", [], ["pgd"]], ids=str)
def test_a_gate_that_is_no_object_is_refused(folder, value):
    changed = rewrite(folder, lambda facts: facts["channels"][0].update(gate=value))
    refused(changed, r"`channels\[0\].gate` is .*; it must be an object")


def test_numbers_and_facts_of_a_gate_come_together(folder):
    def drop(tensors):
        for name in [name for name in tensors if ".gate." in name]:
            del tensors[name]

    refused(rewrite(folder, change_tensors=drop), r"lacks 'channels\.0\.gate")
    save(made(), folder)
    nothing = rewrite(folder, lambda facts: facts["channels"][0].update(gate=None))
    refused(nothing, "channel 0 .* numbers of a gate")
    save(made(), folder)
    refused(
        rewrite(folder, lambda facts: facts["channels"][0].pop("gate")),
        r"channels\[0\].gate` is missing",
    )

    def leave(tensors):
        tensors["channels.1.gate.low"] = np.zeros(1, np.float32)

    save(made(), folder)
    refused(rewrite(folder, change_tensors=leave), "channel 1 .* numbers of a gate")


@pytest.mark.parametrize(
    "change",
    [
        {"opened": {"pgd-32": 7.0}},
        {"opened_benign": float("nan")},
        {"quantile": "0.995"},
        {"families": (1, 2)},
        {"mean": np.full(tiny.WIDTH, 1e300)},
        {"low": np.zeros(2), "high": np.full(2, 1e-60), "filters": np.zeros((tiny.WIDTH, 2))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_gate_that_could_not_be_read_again_is_not_written(tmp_path, change):
    repair = made()
    channel = repair.channels[0]
    spoilt = replace(channel, gate=replace(channel.gate, **change))
    with pytest.raises(ArtefactError, match=r"channel( 0|s\[0\])") as caught:
        save(replace(repair, channels=(spoilt,)), tmp_path / "repair")
    assert next(iter(change)) in str(caught.value)
    assert not (tmp_path / "repair").exists()
