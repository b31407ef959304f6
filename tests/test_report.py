"""The report: schema, summary, escaping, round trip, atomicity."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any, get_type_hints, is_typeddict

import numpy as np
import pytest

from care.errors import DataError, StorageError
from care.report import (
    charts,
    files,
    layer_charts,
    load_report,
    schema,
    summarise,
    svg,
    validate,
    write_report,
)
from care.report.values import plain
from fixtures_report import OUTCOMES, report_tree, wilson

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>&amp;"


@pytest.fixture
def tree() -> dict[str, Any]:
    return report_tree()


def put(tree: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    node: Any = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def minimal(tree: dict[str, Any]) -> dict[str, Any]:
    keys = ("schema", "title", "created", "suites", "outcomes", "cost", "manifest")
    return {key: tree[key] for key in keys}


# --- writing and reading ------------------------------------------------------------------------


def test_json_round_trip_is_exact(tree: dict[str, Any], tmp_path: Path) -> None:
    _, json_path = write_report(tree, tmp_path / "new" / "folder")
    loaded = load_report(json_path)
    assert loaded == load_report(json_path.parent)
    assert {key: loaded[key] for key in tree} == tree
    assert loaded["summary"] == summarise(tree)
    again = write_report(loaded, tmp_path / "again")[1]
    assert again.read_bytes() == json_path.read_bytes()


def test_the_callers_tree_is_untouched(tree: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(tree)
    write_report(tree, tmp_path)
    assert tree == before


def test_numpy_values_and_tuples_become_plain(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["cost"]["total_seconds"] = np.float32(2.5)
    tree["suites"][0]["target"] = np.bool_(False)
    tree["suites"][0]["discordant"] = (np.int64(2), 0)
    tree["repair"]["channels"][0]["eigenvalues"] = np.array([3.0, 1.0])
    loaded = load_report(write_report(tree, tmp_path)[1])
    assert loaded["cost"]["total_seconds"] == 2.5
    assert loaded["suites"][0]["target"] is False
    assert loaded["repair"]["channels"][0]["eigenvalues"] == [3.0, 1.0]


def test_optional_parts_may_be_missing_or_empty(tree: dict[str, Any], tmp_path: Path) -> None:
    html_path, json_path = write_report(minimal(tree), tmp_path)
    loaded = load_report(json_path)
    assert loaded["controls"] == {} and loaded["diagnosis"] is None and loaded["examples"] == []
    page = html_path.read_text(encoding="utf-8")
    assert 'id="diagnosis"' not in page and 'href="#diagnosis"' not in page
    assert "not measured: better than every control" in loaded["summary"]["verdict"]
    tree["diagnosis"] |= {"layers": [], "separability": [], "generated": [], "recommended": []}
    tree["diagnosis"]["rank_correlation"] = {}
    tree["diagnosis"]["channels"]["sites"] = []
    tree["repair"] |= {
        "channels": [],
        "selection": {"rule": "none", "candidates": [], "screened": []},
    }
    tree |= {"attribution": {"examples": []}, "controls": {}, "examples": []}
    tree["cost"]["stages"] = []
    page = write_report(tree, tmp_path)[0].read_text(encoding="utf-8")
    assert "no site met the conditions" in page and "No site was scanned" in page


def test_one_layer_and_one_eigenvalue_can_be_drawn(tree: dict[str, Any], tmp_path: Path) -> None:
    diagnosis = tree["diagnosis"]
    diagnosis["n_layers"] = 1
    keys = ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low")
    diagnosis["layers"] = [{"layer": 0, "component": "ffn"} | dict.fromkeys(keys, 0.0)]
    diagnosis["channels"]["sites"] = diagnosis["channels"]["sites"][:1]
    diagnosis["separability"] = diagnosis["separability"][:1]
    tree["repair"]["channels"][0] |= {"eigenvalues": [0.0], "null_quantile": None}
    page = write_report(tree, tmp_path)[0].read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"[A-Za-z0-9+/]{200,}", "", page).lower().split()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_previous_report(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    old = [path.read_bytes() for path in write_report(tree, tmp_path)]
    tree["title"] = "another"

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    owner = files.os if failing == "fsync" else Path
    monkeypatch.setattr(owner, failing, no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        write_report(tree, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")] == old


def test_interrupt_while_writing_cleans_up(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(tree, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_tree_leaves_the_previous_report(tree: dict[str, Any], tmp_path: Path) -> None:
    paths = write_report(tree, tmp_path)
    old = [path.read_bytes() for path in paths]
    del tree["suites"][0]["n"]
    with pytest.raises(DataError):
        write_report(tree, tmp_path)
    assert [path.read_bytes() for path in paths] == old


def test_target_that_is_a_folder_is_refused_before_anything_moves(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(StorageError):
        write_report(tree, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_load_report_says_what_is_wrong(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable report"):
        load_report(tmp_path / "nothing.json")
    file = tmp_path / "report.json"
    file.write_text("{oops")
    with pytest.raises(DataError, match="isn't valid JSON"):
        load_report(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="no JSON object"):
        load_report(file)
    file.write_text(json.dumps(tree | {"schema": "care.report/9"}))
    with pytest.raises(DataError, match=r"care\.report/4"):
        load_report(file)


def test_later_minor_additions_stay_readable(tree: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(tree | {"novelty": 1}))
    assert load_report(file)["novelty"] == 1


# --- escaping -----------------------------------------------------------------------------------


def test_every_string_of_the_tree_is_escaped(tree: dict[str, Any], tmp_path: Path) -> None:
    tree = json.loads(json.dumps(tree))
    tree["title"] = tree["created"] = EVIL
    for suite in tree["suites"][1:2]:
        tree["outcomes"][EVIL] = tree["outcomes"].pop(suite["name"])
        for control in tree["controls"].values():
            control["suites"][EVIL] = control["suites"].pop(suite["name"])
        for pair in tree["examples"]:
            pair["suite"] = EVIL if pair["suite"] == suite["name"] else pair["suite"]
        suite["name"] = EVIL
    tree["controls"][EVIL] = tree["controls"].pop("random subspace")
    for key in ("metric", "intervention", "sign", "verdict"):
        tree["diagnosis"][key] = EVIL
    tree["diagnosis"]["channels"] |= {"metric": EVIL, "rule": EVIL}
    for item in tree["diagnosis"]["channels"]["sites"]:
        item["site"] = f"{item['layer']}.{EVIL}"
    for channel in tree["repair"]["channels"][:1]:
        gate = channel["gate"]
        gate["open"][EVIL] = gate["open"].pop(gate["families"][0])
        gate["families"][0] = EVIL
    for item in [*tree["diagnosis"]["recommended"], *tree["diagnosis"]["generated"]]:
        item.update({key: EVIL for key in item if isinstance(item[key], str)})
    for example in tree["attribution"]["examples"]:
        example["id"] = EVIL
        example["tokens"] = [EVIL] * len(example["tokens"])
    for channel in tree["repair"]["channels"]:
        channel |= {"site": EVIL, "modality": EVIL, "scopes": [EVIL]}
    tree["repair"]["preset"] = tree["repair"]["selection"]["rule"] = EVIL
    for candidate in tree["repair"]["selection"]["candidates"]:
        candidate["name"] = EVIL
    for pair in tree["examples"]:
        pair |= {"id": EVIL, "goal": EVIL, "prompt": EVIL, "before": EVIL, "after": EVIL}
    tree["cost"]["stages"][0]["name"] = EVIL
    tree["cost"]["machine"] = {EVIL: [EVIL, {EVIL: EVIL}]}
    tree["manifest"] = {"model": EVIL, EVIL: {EVIL: [EVIL]}, "list": [{EVIL: EVIL}]}
    page = write_report(tree, tmp_path)[0].read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    assert "<img src=http" not in page
    assert not re.search(r"<[^>]*\sonerror=", re.sub(r'"[^"]*"', '""', page))
    assert "&lt;script&gt;" in page


def test_characters_that_hide_or_reorder_are_replaced(tree: dict[str, Any], tmp_path: Path) -> None:
    nasty = "a\x00b\x1b[31mc\u202ed\ud800e\u2066f"
    tree["examples"][0]["before"] = tree["suites"][0]["name"] = nasty
    tree["outcomes"][nasty] = tree["outcomes"].pop("direct request")
    html_path, json_path = write_report(tree, tmp_path)
    page = html_path.read_text(encoding="utf-8")
    assert not set("\x00\x1b\u202e\u2066") & set(page)
    assert load_report(json_path)["examples"][0]["before"] == nasty


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/x.png",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,AA"onload="x',
        "",
    ],
)
def test_only_inline_raster_images_are_accepted(tree: dict[str, Any], uri: str) -> None:
    tree["examples"][0]["image"] = uri
    with pytest.raises(DataError, match=r"examples\[0\]\.image.*data URI"):
        validate(tree)


def test_page_is_self_contained(tree: dict[str, Any], tmp_path: Path) -> None:
    html_path, json_path = write_report(tree, tmp_path)
    page = html_path.read_text(encoding="utf-8")
    assert "<script" not in page and "<link" not in page and "@import" not in page
    assert not re.search(r"(?:src|href)\s*=\s*(?!\"(?:#|data:image/))", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert html_path.stat().st_size < 1_000_000
    assert files.hashlib.sha256(json_path.read_bytes()).hexdigest() in page


# --- validation ---------------------------------------------------------------------------------

SCAN = ("diagnosis", "channels", "sites")
GATE = ("repair", "channels", 0, "gate")
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
    (("suites", 1, "n"), 0, "suites[1].n` is 0; it must lie between 1"),
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
    (("manifest", "when"), object(), "manifest.when` has the type object"),
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
    ((*SCAN, 5, "n_attacks"), -1, "sites[5].n_attacks` is -1; it must lie"),
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
    ("diagnosis",): schema.Diagnosis,
    ("diagnosis", "layers", 0): schema.LayerEffect,
    ("diagnosis", "channels"): schema.ChannelScan,
    (*SCAN, 0): schema.ChannelSite,
    ("repair", "channels", 0): schema.Channel,
    GATE: schema.Gate,
}


@pytest.mark.parametrize(
    ("path", "key"),
    [(path, key) for path, hint in REQUIRED.items() for key in sorted(hint.__required_keys__)],
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
    tree["summary"] = dict(summarise(tree)) | {"mean_asr_after": 0.01}
    with pytest.raises(DataError, match=r"summary\.mean_asr_after"):
        write_report(tree, tmp_path)
    tree["summary"] = dict(summarise(tree))
    write_report(tree, tmp_path)


def test_plain_refuses_infinity() -> None:
    with pytest.raises(DataError, match=r"`a\[1\]` is inf"):
        plain({"a": [1.0, float("inf")]})


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    types = [item for item in vars(schema).values() if is_typeddict(item)]
    assert len(types) > 15
    missing = {key for item in types for key in get_type_hints(item) if f"`{key}`" not in text}
    assert not missing
    assert schema.SCHEMA in text


# --- summary ------------------------------------------------------------------------------------


def test_summary_figures(tree: dict[str, Any]) -> None:
    summary = summarise(tree)
    before, after = [34, 43, 51, 47, 66], [3, 7, 6, 5, 9]  # the baseline isn't among them
    assert summary["mean_asr_before"] == pytest.approx(sum(before) / 400)
    assert summary["mean_asr_after"] == pytest.approx(sum(after) / 400)
    assert summary["relative_reduction"] == pytest.approx(1 - sum(after) / sum(before))
    utility = [(108 - 109) / 120, 0, (96 - 97) / 100]
    assert summary["utility_change"] == pytest.approx(100 * sum(utility) / 3)
    answered = [(118 - 116) / 120, (54 - 53) / 60]
    assert summary["over_refusal_change"] == pytest.approx(100 * sum(answered) / 2)
    degenerate = [0, 1 / 80, 1 / 80, 2 / 80, 0, 1 / 80, 1 / 120, 0, 0, 0, 0]
    assert summary["degenerate_change"] == pytest.approx(100 * sum(degenerate) / 11)
    assert summary["all_met"] is True
    assert summary["verdict"] == (
        "Mean attack success fell from 60.2% to 7.5% (87.6% relative reduction) over 5 attack "
        "suites; utility \u22120.6, over-refusal +1.7 and degenerate answers +0.6 percentage "
        "points. All 6 targets are met."
    )


def test_summary_is_pure(tree: dict[str, Any]) -> None:
    before = copy.deepcopy(tree)
    assert summarise(tree) == summarise({k: tree[k] for k in ("suites", "outcomes", "controls")})
    assert tree == before


def set_rates(tree: dict[str, Any], name: str, after: int) -> None:
    """Set how many examples of a suite have the measured event after the repair."""
    suite = next(suite for suite in tree["suites"] if suite["name"] == name)
    suite["after"] = wilson(after, suite["n"])
    column = {"ASR": 0, "answered": 3, "accuracy": 3}[suite["metric"]]
    counts = [0, 0, 0, 0]
    counts[column], counts[1] = after, suite["n"] - after
    tree["outcomes"][name]["after"] = dict(zip(OUTCOMES, counts, strict=True))


def met(tree: dict[str, Any]) -> list[bool | None]:
    return [target["met"] for target in summarise(tree)["targets"]]


def test_each_target_can_be_missed(tree: dict[str, Any]) -> None:
    assert met(tree) == [True] * 6
    for name in ("unrelated image", "text jailbreak", "image-carried goal", "PGD κ=32/255"):
        set_rates(tree, name, 30)
    assert met(tree) == [False, True, True, True, True, False]
    tree = report_tree()
    set_rates(tree, "unrelated image", 34)
    assert met(tree)[1] is False and "unrelated image" in summarise(tree)["targets"][1]["measured"]
    tree = report_tree()
    set_rates(tree, "visual questions", 90)
    assert met(tree)[2] is False
    tree = report_tree()
    set_rates(tree, "benign look-alikes", 48)
    assert met(tree)[3] is False
    assert "missed: over-refusal" in summarise(tree)["verdict"]
    tree = report_tree()
    for suite in tree["suites"]:
        if suite["role"] == "attack":
            counts = tree["outcomes"][suite["name"]]["after"]
            counts["degenerate"] += counts["refused"]
            counts["refused"] = 0
    assert met(tree) == [True, True, True, True, False, True]


def test_improvements_never_miss_a_target(tree: dict[str, Any]) -> None:
    set_rates(tree, "visual questions", 120)
    set_rates(tree, "benign look-alikes", 60)
    assert met(tree) == [True] * 6


def test_a_control_wins_unless_it_breaks_the_limits(tree: dict[str, Any]) -> None:
    measured = summarise(tree)["targets"][5]["measured"]
    assert measured.startswith("5 of 5 beaten") and "strength 1.5 (utility" in measured
    tree["controls"]["strength 1.5"] |= {"utility": 0.93, "answered": 0.94}
    assert met(tree)[5] is False
    assert "not beaten: strength 1.5" in summarise(tree)["targets"][5]["measured"]


def test_a_control_is_compared_on_the_suites_it_was_measured_on(tree: dict[str, Any]) -> None:
    """Look-alikes are answered less than benign requests before any repair."""
    control = tree["controls"]["strength 1.5"]
    control |= {"utility": 0.94, "answered": 0.9}
    assert met(tree)[5] is True  # 0.9 is 4 points below the mean of both suites
    control["suites"]["benign look-alikes"] = 0.9
    assert met(tree)[5] is False  # and what look-alikes were at, 54 of 60


def test_missing_roles_are_not_measured(tree: dict[str, Any]) -> None:
    keep = [suite for suite in tree["suites"] if suite["role"] == "attack"][:1]  # the baseline
    parts = {"suites": keep, "outcomes": {keep[0]["name"]: tree["outcomes"][keep[0]["name"]]}}
    summary = summarise(parts)
    assert summary["mean_asr_before"] is None and summary["utility_change"] is None
    assert [target["met"] for target in summary["targets"]] == [None, None, None, None, True, None]
    assert summary["all_met"] is False
    assert summary["verdict"].startswith("No attack suite was measured; degenerate answers 0.0")


def test_attack_success_of_zero_before(tree: dict[str, Any]) -> None:
    for suite in tree["suites"]:
        if suite["role"] == "attack":
            for when in ("before", "after"):
                suite[when] = wilson(0, 80)
                tree["outcomes"][suite["name"]][when] = dict(
                    zip(OUTCOMES, (0, 80, 0, 0), strict=True)
                )
    summary = summarise(tree)
    assert summary["relative_reduction"] is None
    assert summary["targets"][0]["met"] is None and summary["targets"][1]["met"] is False


def test_summarise_names_a_missing_part(tree: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="`outcomes` is missing"):
        summarise({"suites": tree["suites"]})


# --- drawing ------------------------------------------------------------------------------------


def test_stacked_bars_have_the_right_widths() -> None:
    counts: dict[str, int] = dict(zip(OUTCOMES, (10, 20, 30, 40), strict=True))
    strip = str(charts.outcome_strip(counts, "x"))
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="18" class="o-', strip)]
    if not widths:
        found = re.findall(r'<rect class="o-\w+" x="[\d.]+" y="0" width="([\d.]+)"', strip)
        widths = [float(w) for w in found]
    assert widths == [24.0, 48.0, 72.0, 96.0]


def test_the_channel_scan_draws_every_figure(tree: dict[str, Any]) -> None:
    """Two layers of three: pixels from the axes' geometry, order from the layers."""
    keys = ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low")
    rows = {2: (0.5, 0.25, 0.75, 0.125, 0.375, 0.125), 0: (0.0, -0.25, 0.25, 0.0, 0.0, -0.25)}
    sites = [
        {"site": f"{layer}.layer_out", "layer": layer, "recommended": layer == 2}
        | dict(zip(keys, row, strict=True))
        | {"modality": modality, "n_attacks": 8, "n_benign": 8}
        for modality, shift in (("image", 0.0), ("text", 0.01))
        for layer, row in ((layer, [v + shift for v in row]) for layer, row in rows.items())
    ]
    scan = {"metric": "m", "rule": "r", "sites": sites}
    chart = str(layer_charts.channel_scan({"channels": scan, "n_layers": 3}, "image"))

    def y(points: float) -> float:  # -25 to 75 widened by 5% of the range, on pixels 300 to 58
        return 300 - (points + 30) / 110 * 242

    band = re.search(r'<path d="M([^"]+)Z" class="band c-attack"', chart)
    assert band is not None
    corners = [[float(v) for v in pair.split(",")] for pair in band[1].split("L")]
    wanted = [(64, -25), (840, 25), (840, 75), (64, 25)]
    assert corners == [pytest.approx([x, y(value)], abs=0.01) for x, value in wanted]
    benign = re.search(r'<path d="M([^"]+)" class="curve c-benign"', chart)
    assert benign is not None
    last = benign[1].split("L")[1].split(",")
    assert [float(v) for v in last] == pytest.approx([840, y(12.5)], abs=0.01)
    rings = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" class="ring"', chart)
    assert len(rings) == 2  # the legend's and that of the recommended site
    assert [float(v) for v in rings[0]] == pytest.approx([840, y(50)], abs=0.01)
    assert "image channel at 2.layer_out: attacks +50.0 points [+25.0, +75.0], benign" in chart
    assert "text channel" not in chart


def test_the_layer_scan_tells_its_selectivity(tree: dict[str, Any]) -> None:
    item = tree["diagnosis"]["layers"][0]
    item |= {"benign_effect": 0.25, "selectivity": 1.25, "selectivity_low": -0.5}
    chart = str(layer_charts.layer_curves(tree["diagnosis"]))
    assert "benign 0.25, selectivity 1.25 (at least \N{MINUS SIGN}0.5)" in chart


def test_heatmap_cells_follow_the_row_major_grid(tree: dict[str, Any]) -> None:
    example = tree["attribution"]["examples"][0]
    example |= {"grid": [2, 4], "visual_scores": [0, 0, 0, 0, 0, 0, 5.0, 2.5]}
    cells = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="70" height="140" fill-opacity="([\d.]+)"',
        str(charts.image_heatmap(example)),
    )
    assert cells == [("140", "140", "0.8"), ("210", "140", "0.4")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3, 4, [-2, 0, 2, 4]), (5, 5, [5])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert svg.round_ticks(low, high, 5) == pytest.approx(expected)


def test_scales() -> None:
    scale = svg.Scale(0, 10, 100, 0)
    assert scale(5) == 50
    log = svg.Scale(1, 100, 0, 10, log=True)
    assert log(10) == pytest.approx(5) and log.ticks() == [1, 10, 100]
