"""The report on disk: round trip, atomicity, escaping. Schema, summary and charts are apart."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from care.errors import DataError, StorageError
from care.report import files
from care.report.files import load_report, write_report
from care.report.schema import validate
from care.report.targets import summarise
from care.typed import to_tree
from kit.reports import tree  # noqa: F401

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>&amp;"


def minimal(tree: dict[str, Any]) -> dict[str, Any]:
    keys = ("schema", "title", "created", "suites", "outcomes", "cost", "manifest")
    return {key: tree[key] for key in keys}


# --- writing and reading ------------------------------------------------------------------------


def test_json_round_trip_is_exact(tree: dict[str, Any], tmp_path: Path) -> None:
    _, json_path = write_report(tree, tmp_path / "new" / "folder")
    loaded = load_report(json_path)
    assert loaded == load_report(json_path.parent)
    assert {key: loaded[key] for key in tree} == tree
    assert loaded["summary"] == to_tree(summarise(tree))
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
    lists = (
        "layers",
        "separability",
        "generated",
        "recommended",
        "heatmap",
        "comparison",
        "causal",
    )
    tree["diagnosis"] |= {key: [] for key in lists} | {"neurons": None, "trust": None}
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


def test_the_page_says_which_control_has_no_gate(tree: dict[str, Any], tmp_path: Path) -> None:
    said = "The difference of means has no gate"
    assert said in write_report(tree, tmp_path)[0].read_text(encoding="utf-8")
    del tree["controls"]["difference of means"]
    assert said not in write_report(tree, tmp_path)[0].read_text(encoding="utf-8")


def test_one_layer_and_one_eigenvalue_can_be_drawn(tree: dict[str, Any], tmp_path: Path) -> None:
    diagnosis = tree["diagnosis"]
    diagnosis["n_layers"] = 1
    keys = ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low")
    diagnosis["layers"] = [{"layer": 0, "component": "ffn"} | dict.fromkeys(keys, 0.0)]
    diagnosis["channels"]["sites"] = diagnosis["channels"]["sites"][:1]
    diagnosis["separability"] = diagnosis["separability"][:1]
    diagnosis["heatmap"] = [diagnosis["heatmap"][0]]
    neurons = diagnosis["neurons"]
    neurons |= {"found": [neurons["found"][0] | {"layer": 0}], "controls": []}
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
    for channel in tree["repair"]["channels"][:1]:
        gate = channel["gate"]
        gate["open"][EVIL] = gate["open"].pop(gate["families"][0])
        gate["families"][0] = EVIL
    for item in [*tree["diagnosis"]["recommended"], *tree["diagnosis"]["generated"]]:
        texts = [key for key in item if isinstance(item[key], str) and key != "site"]
        item.update(dict.fromkeys(texts, EVIL))  # a site is refused unless it is one
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
