"""The report's schema: what is refused, by which sentence, and what may be missing."""

import math
from pathlib import Path
from typing import Any

import pytest

from care.diagnosis import site_results
from care.diagnosis.faithfulness import CurvePoint, Faithfulness
from care.diagnosis.neurons import results as neurons
from care.diagnosis.reliability import Agreement
from care.diagnosis.results import Diagnosis
from care.errors import DataError
from care.report import repair_schema, schema
from care.report.described import described
from care.report.files import write_report
from care.report.schema import json_schema, validate
from care.report.targets import summarise
from care.typed import to_tree
from kit.reports import put, tree, wilson  # noqa: F401

SCAN = ("diagnosis", "channels", "sites")
GATE = ("repair", "channels", 0, "gate")
HEAT = ("diagnosis", "heatmap")
CAUSAL = ("diagnosis", "causal")
FOUND = ("diagnosis", "neurons", "found")
RESCAN = ("diagnosis", "rescan", "sites")
JUDGED = ("diagnosis", "neurons", "repair", "judged")
CURVE = ("diagnosis", "trust", "faithfulness", 0)


def about(rate: float) -> dict[str, float]:
    return {"rate": rate, "low": rate, "high": rate}


class NotJson:
    """Of no type that JSON has."""


FINDINGS: list[tuple[tuple[str | int, ...], Any, str]] = [
    ((*HEAT, 5, "layer"), 30, "heatmap[5].layer` is 30, but the model has 30 layers"),
    ((*HEAT, 5, "window"), 0, "heatmap[5].window` is 0; it must be at least 1"),
    ((*HEAT, 5, "window"), 31, "heatmap[5].window` is 31, but the model has 30 layers"),
    ((*HEAT, 5, "layer"), 4, "heatmap[5]` repeats layer 4, ffn, window 1, 'mean'"),
    ((*HEAT, 5, "component"), "head", "heatmap[5].component` is 'head'; use one of 'ffn'"),
    ((*HEAT, 5, "low"), 9.0, "heatmap[5]` has effect"),
    ((*HEAT, 5, "selectivity"), 9.0, "heatmap[5].selectivity` is 9, but effect less"),
    ((*HEAT, 5, "selectivity_low"), 9.0, "heatmap[5].selectivity_low` is 9, above the"),
    ((*HEAT, 5, "relative_norm"), -1.0, "heatmap[5].relative_norm` is -1.0; it must be at least"),
    ((*HEAT, 5, "effects"), 1.0, "effects` isn't a key of the schema; did you mean 'effect'?"),
    (("diagnosis", "comparison", 1, "matched_by"), "size", "matched_by` is 'size'; use one of"),
    (("diagnosis", "comparison", 1, "matched_by"), "kind", "comparison[1]` repeats 'mean' matched"),
    (("diagnosis", "comparison", 1, "survives"), True, "comparison[1].survives` is True, but the"),
    (("diagnosis", "comparison", 0, "ffn", "rate"), 0.55, "difference.rate` is 0.31, but ffn less"),
    (("diagnosis", "comparison", 0, "ffn", "low"), 0.9, "comparison[0].ffn` has rate"),
    ((*CAUSAL, 1, "total", "low"), 0.0, "causal[1].total` has rate"),
    ((*CAUSAL, 1, "direct", "rate"), -2.0, "causal[1].identity_error` is 2.4e-06, but total less"),
    ((*CAUSAL, 1, "identity_error"), -1, "causal[1].identity_error` is -1; it must be at least"),
    ((*RESCAN, 1, "site"), "15.ffn_out", "rescan.sites[1].site` repeats '15.ffn_out'"),
    ((*RESCAN, 1, "again", "low"), 9.0, "rescan.sites[1].again` has rate"),
    (
        (*JUDGED, "edits", 1, "edit"),
        "none",
        "edits` has none, none, subspace; it must have none, ne",
    ),
    ((*JUDGED, "edits", 1, "asr", "low"), 0.9, "edits[1].asr` has rate"),
    ((*JUDGED, "edits", 1, "asr", "rate"), 0.45, "rate` is 0.3, but neurons less subspace is 0.35"),
    ((*JUDGED, "edits", 1, "utility"), 1.5, "edits[1].utility` is 1.5; it must lie between 0"),
    ((*JUDGED, "difference", "low"), 0.9, "judged.difference` has rate"),
    ((*FOUND, 2, "layer"), 30, "found[2].layer` is 30, but the model has 30 layers"),
    ((*FOUND, 2, "exact"), 9.0, "found[2]` has exact 9 outside its interval"),
    ((*FOUND, 2, "q"), 0.0, "found[2].q` is 0, below p, 0.0005"),
    ((*FOUND, 2, "q"), 2.0, "found[2].q` is 2.0; it must lie between 0 and 1"),
    ((*FOUND, 2, "benign_exact"), "none", "benign_exact` is 'none'; it must be a number"),
    ((*FOUND, 2, "top_tokens"), "sorry", "found[2].top_tokens` is 'sorry'; it must be a list"),
    (("diagnosis", "neurons", "precision", "8"), 1.5, "precision.8` is 1.5; it must lie"),
    (("diagnosis", "neurons", "spearman", "rho"), 1.2, "spearman.rho` is 1.2; it must lie"),
    (("diagnosis", "neurons", "spearman", "low"), 0.95, "spearman` has low 0.95 above high 0.9"),
    (("diagnosis", "neurons", "n_neurons"), 0, "n_neurons` is 0; it must be at least 1"),
    (("diagnosis", "neurons", "repair", "neurons", 0), [3], "neurons[0]` has 1 items; it must"),
    ((*CURVE, "n_units"), 61, "faithfulness[0].points` has sizes"),
    ((*CURVE, "points"), [], "faithfulness[0].points` has sizes []; they must rise from 0 to 60"),
    ((*CURVE, "points", 1, "size"), 0, "has sizes [0, 0, 2"),
    ((*CURVE, "points", 0, "faithfulness"), about(0.1), "has faithfulness 0.1 at size 0, where"),
    ((*CURVE, "points", -1, "completeness"), about(0.1), "has completeness 0.1 at size 60, where"),
    ((*CURVE, "points", 1, "faithfulness", "low"), 7.0, "points[1].faithfulness` has rate"),
    ((*CURVE, "random_cpr", "low"), 9.0, "random_cpr` has low 9 above high"),
    ((*CURVE, "cpr", "low"), 9.0, "cpr` has rate"),
    ((*CURVE, "beaten"), 1.1, "beaten` is 1.1; it must lie between 0 and 1"),
    (("diagnosis", "trust", "stability", 0, "kind"), "halves", "kind` is 'halves'; use one of"),
    (("diagnosis", "trust", "stability", 0, "overlap", "low"), 0.99, "stability[0].overlap` has"),
    (("diagnosis", "trust", "stability", 0, "reliability", "rho"), 1.0, "reliability` has rho"),
    (("diagnosis", "trust", "stability", 0, "reliability", "low"), 1.0, "reliability` has low 1"),
    (("diagnosis", "supported"), "all", "diagnosis.supported` is 'all'; it must be a list"),
]
BROKEN: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("suites", 2, "before", "rate"), 1.5, "suites[2].before.rate` is 1.5; it must lie between"),
    (
        ("suites", 2, "before", "rate"),
        "0.5",
        "suites[2].before.rate` is '0.5'; it must be a number",
    ),
    (("suites", 2, "before", "low"), 0.9, "suites[2].before` has rate"),
    (("suites", 1, "role"), "atack", "suites[1].role` is 'atack'; use one of 'attack'"),
    (("suites", 1, "discordant"), [1], "suites[1].discordant` has 1 items; it must have 2"),
    (("suites", 1, "n"), True, "suites[1].n` is True; it must be an integer"),
    (("suites", 1, "n"), 0, "suites[1].n` is 0; it must be at least 1"),
    (("suites", 1, "n"), 79, "counts 80, but suites[1].n says 79"),
    (("suites", 1, "name"), "direct request", "suites[1].name` repeats 'direct request'"),
    (("suites", 1, "taget"), True, "suites[1].taget` isn't a key of the schema; did you mean"),
    (("suites",), [], "suites` is empty"),
    (("suites",), {}, "suites` is {}; it must be a list"),
    (("outcomes", "text jailbreak", "after", "safe"), 99, "outcomes['text jailbreak'].after"),
    (("outcomes", "surplus"), {}, "outcomes.surplus.after` is missing"),
    (("controls", "without text", "mean_asr"), 0.9, "controls['without text'].mean_asr` is 0.9"),
    (("controls", "without text", "suites"), {}, "lacks 'unrelated image'"),
    (("controls", "without text", "suites", "x"), 0.1, "names 'x', not in suites"),
    (("diagnosis", "layers", 3, "effect"), math.nan, "diagnosis.layers[3].effect` is nan"),
    (("diagnosis", "n_layers"), 2.5, "diagnosis.n_layers` is 2.5; it must be an integer"),
    (("attribution", "examples", 0, "grid"), [3, 3], "visual_scores` counts 64, but grid says 9"),
    (("attribution", "examples", 0, "text_scores"), [1.0], "but tokens says 16"),
    (("examples", 0, "outcome_after"), "fine", "examples[0].outcome_after` is 'fine'"),
    (("examples", 0, "suite"), "unknown", "examples[0].suite` is 'unknown', which isn't in"),
    (("cost", "total_seconds"), -1, "cost.total_seconds` is -1"),
    (("cost", "total_seconds"), None, "cost.total_seconds` is None; it must be a number"),
    (("manifest", "when"), NotJson, "manifest.when` has the type type"),
    (("manifest", "map"), {1: 2}, "manifest.map` has the key 1 of type int"),
    (("schema",), "care.report/1", "schema` is 'care.report/1', but this version"),
    (("diagnosis", "layers", 3, "selectivity"), "1", "layers[3].selectivity` is '1'; it must be a"),
    (("diagnosis", "verdict"), None, "diagnosis.verdict` is None; it must be a string"),
    (("diagnosis", "channels"), [], "diagnosis.channels` is []; it must be an object"),
    ((*SCAN, 5, "effect"), 1.2, "channels.sites[5].effect` is 1.2; it must lie between -1 and 1"),
    ((*SCAN, 5, "low"), -1.5, "sites[5].low` is -1.5; it must lie between -1"),
    ((*SCAN, 5, "low"), 0.99, "sites[5]` has effect"),
    ((*SCAN, 5, "high"), 7, "sites[5].high` is 7; it must lie between -1"),
    ((*SCAN, 5, "benign_effect"), -3, "sites[5].benign_effect` is -3; it must lie between -1"),
    ((*SCAN, 5, "selectivity"), 2.5, "sites[5].selectivity` is 2.5; it must lie between -2 and 2"),
    ((*SCAN, 5, "selectivity"), 0.5, "sites[5].selectivity` is 0.5, but effect less"),
    ((*SCAN, 5, "selectivity_low"), -9, "sites[5].selectivity_low` is -9; it must lie"),
    ((*SCAN, 5, "selectivity_low"), 0.9, "sites[5].selectivity_low` is 0.9, above the"),
    ((*SCAN, 5, "n_attacks"), -1, "sites[5].n_attacks` is -1; it must be at least"),
    ((*SCAN, 5, "n_benign"), 1.5, "sites[5].n_benign` is 1.5; it must be an integer"),
    ((*SCAN, 5, "recommended"), 1, "sites[5].recommended` is 1; it must be true or false"),
    ((*SCAN, 5, "layer"), 30, "sites[5].layer` is 30, but the model has 30 layers"),
    ((*SCAN, 5, "layer"), 4, "sites[5].layer` repeats 4"),
    ((*SCAN, 5, "site"), "50.layer_out", "sites[5].site` is '50.layer_out', which isn't in layer"),
    (GATE, {}, "channels[0].gate.families` is missing"),
    ((*GATE, "families"), [], "gate.families` must name every family once, and at least one"),
    ((*GATE, "families"), ["PGD"] * 3, "gate.families` must name every family once"),
    ((*GATE, "low"), [0.1], "gate.low` counts 1, but families says 3"),
    ((*GATE, "high"), [0.1] * 4, "gate.high` counts 4, but families says 3"),
    ((*GATE, "high", 1), 0.0, "gate.low[1]` is 0.35, not below high[1], 0"),
    ((*GATE, "open", "PGD"), 1.01, "gate.open.PGD` is 1.01; it must lie between 0 and 1"),
    ((*GATE, "open", "other"), 0.5, "gate.open` and families differ in 'other'"),
    ((*GATE, "open"), {}, "gate.open` and families differ in 'PGD'"),
    ((*GATE, "open_benign"), -0.1, "gate.open_benign` is -0.1; it must lie between 0"),
    ((*GATE, "quantile"), 99.5, "gate.quantile` is 99.5; it must lie between 0"),
    *FINDINGS,
]


@pytest.mark.parametrize(("path", "value", "words"), BROKEN, ids=lambda value: str(value)[:40])
def test_the_offending_key_is_named(
    tree: dict[str, Any], tmp_path: Path, path: tuple[str | int, ...], value: Any, words: str
) -> None:
    put(tree, path, value)
    with pytest.raises(DataError) as caught:
        write_report(tree, tmp_path)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["schema", "title", "suites", "outcomes", "cost", "manifest"])
def test_required_keys(tree: dict[str, Any], tmp_path: Path, key: str) -> None:
    del tree[key]
    with pytest.raises(DataError, match=f"`{key}`"):
        write_report(tree, tmp_path)


REQUIRED = {
    ("diagnosis",): Diagnosis,
    ("diagnosis", "layers", 0): site_results.LayerEffect,
    ("diagnosis", "channels"): site_results.ChannelScan,
    (*SCAN, 0): site_results.ChannelEffect,
    (*HEAT, 0): site_results.HeatCell,
    ("diagnosis", "comparison", 0): site_results.ComponentComparison,
    (*CAUSAL, 0): site_results.SiteEffects,
    ("diagnosis", "neurons"): neurons.NeuronReport,
    (*FOUND, 0): neurons.NeuronEffect,
    CURVE: Faithfulness,
    (*CURVE, "points", 0): CurvePoint,
    ("diagnosis", "trust", "stability", 0): Agreement,
    ("repair", "channels", 0): repair_schema.ChannelPart,
    GATE: repair_schema.GatePart,
}


def required(kind: Any) -> list[str]:
    """The keys that a type of the schema can't do without."""
    return [field.key for field in described(kind) if field.required]


@pytest.mark.parametrize(
    ("path", "key"),
    [(path, key) for path, kind in REQUIRED.items() for key in required(kind)],
    ids=str,
)
def test_no_figure_of_a_finding_may_be_missing(
    tree: dict[str, Any], path: tuple[str | int, ...], key: str
) -> None:
    node: Any = tree
    for step in path:
        node = node[step]
    del node[key]
    with pytest.raises(DataError, match=rf"{path[-1]}.*{key}` is missing"):
        validate(tree)


def test_no_channel_scan_and_no_gate_are_null(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["diagnosis"]["channels"] = None
    for channel in tree["repair"]["channels"]:
        channel["gate"] = None
    page = write_report(tree, tmp_path)[0].read_text(encoding="utf-8")
    assert "Channel scan" not in page and "Gate opens for" not in page
    assert "towards its mean on benign inputs" in page


def test_selectivity_may_exceed_one(tree: dict[str, Any]) -> None:
    """Every attack is refused and some benign requests no longer are."""
    site = tree["diagnosis"]["channels"]["sites"][0]
    site |= {"effect": 1.0, "high": 1.0, "benign_effect": -0.25}
    validate(put(tree, (*SCAN, 0), site | {"selectivity": 1.25, "selectivity_low": 1.0}))


def test_rate_must_agree_with_the_counts(tree: dict[str, Any]) -> None:
    tree["suites"][1]["after"] = wilson(4, 80)
    with pytest.raises(DataError, match=r"suites\[1\]\.after\.rate` is 0\.05, but .*harmful"):
        validate(tree)


def test_two_chosen_candidates_are_refused(tree: dict[str, Any]) -> None:
    for candidate in tree["repair"]["selection"]["candidates"][:2]:
        candidate["chosen"] = True
    with pytest.raises(DataError, match="chosen"):
        validate(tree)


def test_a_summary_that_disagrees_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["summary"] = to_tree(summarise(tree)) | {"mean_asr_after": 0.01}
    with pytest.raises(DataError, match=r"summary\.mean_asr_after"):
        write_report(tree, tmp_path)
    tree["summary"] = to_tree(summarise(tree))
    write_report(tree, tmp_path)


def test_plain_refuses_infinity() -> None:
    with pytest.raises(DataError, match=r"`a\[1\]` is inf"):
        to_tree({"a": [1.0, float("inf")]})


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    keys = {key for kind in json_schema()["$defs"].values() for key in kind["properties"]}
    assert not {key for key in keys if f"`{key}`" not in text}
    assert schema.SCHEMA in text
