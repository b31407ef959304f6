"""The diagnosis on the page: what is shown, what may be missing, and whose words are escaped."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from care.report.conclusions import verdict
from care.report.files import load_report, write_report
from kit.reports import tree  # noqa: F401

EVIL = "<script>alert('x')</script>"
NEW = ("heatmap", "rescan", "comparison", "causal", "neurons", "trust", "supported", "unsupported")
TITLES = {
    "heatmap": "Where removing something changes refusal",
    "rescan": "4 sites removed by resample, beside mean",
    "comparison": "<h3>FFN against attention",
    "causal": "Total, direct and indirect effects",
    "neurons": "<h3>Neurons</h3>",
    "trust": "Do the best units explain the behaviour?",
}


def page_of(tree: dict[str, Any], folder: Path) -> str:
    return write_report(tree, folder)[0].read_text(encoding="utf-8")


def test_every_part_is_shown(tree: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(tree, tmp_path)
    for title in (*TITLES.values(), "Would another look say the same?", "Not supported"):
        assert title in page
    assert "attribution patching" in page and "neurons of like norm" in page.replace("\n", " ")


@pytest.mark.parametrize("key", TITLES)
def test_a_part_that_is_missing_is_left_out(tree: dict[str, Any], tmp_path: Path, key: str) -> None:
    del tree["diagnosis"][key]
    page = page_of(tree, tmp_path)
    assert TITLES[key] not in page
    assert all(title in page for name, title in TITLES.items() if name != key)


def test_a_diagnosis_without_any_of_them_is_shown(tree: dict[str, Any], tmp_path: Path) -> None:
    for key in NEW:
        del tree["diagnosis"][key]
    page = page_of(tree, tmp_path)
    diagnosis = load_report(tmp_path)["diagnosis"]
    assert diagnosis["heatmap"] == [] and diagnosis["neurons"] is None is diagnosis["trust"]
    assert diagnosis["unsupported"][-1].startswith("Not tested here: ")
    assert diagnosis["unsupported"][-1].split(": ")[1][:20] in page


def test_parts_of_parts_may_be_empty(tree: dict[str, Any], tmp_path: Path) -> None:
    diagnosis = tree["diagnosis"]
    diagnosis["trust"] = {"faithfulness": [], "stability": []}
    diagnosis["neurons"] |= {"found": [], "controls": [], "control_ratio": None, "precision": {}}
    del diagnosis["neurons"]["repair"], diagnosis["neurons"]["pairs"], diagnosis["rescan"]
    diagnosis["causal"][0] |= {"noising": None, "denoising": None}
    page = page_of(tree, tmp_path)
    assert "n/a" in page and "Would another look" not in page
    assert load_report(tmp_path)["diagnosis"]["neurons"]["repair"] is None


def test_a_repair_of_no_neurons_says_so(tree: dict[str, Any], tmp_path: Path) -> None:
    none = {"neurons": [], "subspace": None, "judged": None}
    tree["diagnosis"]["neurons"]["repair"] |= none
    page = page_of(tree, tmp_path)
    assert "No set of neurons helps within the margin" in page
    assert "subspace repair</th>" not in page


def test_repairs_are_compared_by_whole_answers(tree: dict[str, Any], tmp_path: Path) -> None:
    repair = tree["diagnosis"]["neurons"]["repair"]
    page = page_of(tree, tmp_path)
    assert "3 neurons suppressed</th>" in page and "beyond the margin" not in page
    assert '<b data-key="diagnosis.neurons.repair.judged.edits.1.asr.rate">40.0%</b>' in page
    repair["judged"] |= {"within_margin": False, "neurons": 1}
    repair["judged"]["edits"][2]["utility"] = None
    page = page_of(tree, tmp_path)
    assert "1 neuron suppressed (beyond the margin)</th>" in page and "n/a" in page
    del repair["judged"]
    assert "Judged answers to other requests" not in page_of(tree, tmp_path)
    assert load_report(tmp_path)["diagnosis"]["neurons"]["repair"]["judged"] is None


def test_the_page_says_which_pairs_an_effect_is_of(tree: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(tree, tmp_path)
    for pairs in ("adversarial pictures", "twin requests"):
        assert f"<h4>Refusal log-odds, pairs: {pairs}</h4>" in page
    assert "pairs: adversarial pictures; tokens: decision" in page
    for row in tree["diagnosis"]["causal"]:
        del row["pairs"]
    assert "<h4>Refusal log-odds</h4>" in page_of(tree, tmp_path)
    assert {row["pairs"] for row in load_report(tmp_path)["diagnosis"]["causal"]} == {""}


def test_the_verdict_is_that_of_the_figures(tree: dict[str, Any], tmp_path: Path) -> None:
    """Also where the tree brings another one, as after a change of the rules."""
    expected = {key: list(lines) for key, lines in asdict(verdict(tree["diagnosis"])).items()}
    for change in ({}, {"supported": ["Everything."], "unsupported": []}):
        page = page_of(tree | {"diagnosis": tree["diagnosis"] | change}, tmp_path)
        found = load_report(tmp_path)["diagnosis"]
        assert {key: found[key] for key in expected} == expected
        assert "Everything." not in page


def test_many_neurons_are_folded(tree: dict[str, Any], tmp_path: Path) -> None:
    neurons = tree["diagnosis"]["neurons"]
    more = [neurons["found"][0] | {"neuron": 900 + k} for k in range(20)]
    neurons["found"] += more
    page = page_of(tree, tmp_path)
    assert "12 more neurons" in page
    assert all(f'class="n">{item["neuron"]}</th>' in page for item in more)


def test_words_of_the_diagnosis_are_escaped(tree: dict[str, Any], tmp_path: Path) -> None:
    diagnosis = json.loads(json.dumps(tree["diagnosis"]))
    for row in (*diagnosis["heatmap"], *diagnosis["comparison"]):
        row["intervention"] = EVIL + row["intervention"]
    for row in diagnosis["causal"]:
        row["site"] = EVIL + row["site"]
        row["metric"] = EVIL + row["metric"]
        row["pairs"] = EVIL + row["pairs"]
    diagnosis["rescan"] |= {"intervention": EVIL, "against": EVIL}
    diagnosis["neurons"] |= {
        "pairs": EVIL,
        "method": EVIL,
        "scopes": [EVIL],
        "precision": {EVIL: 0.5},
    }
    diagnosis["neurons"]["repair"]["rule"] = EVIL
    for row in diagnosis["neurons"]["found"]:
        row |= {"top_tokens": [EVIL], "suppressed_tokens": [EVIL]}
        for fired in row["examples"]:
            fired |= {"example": EVIL, "token": EVIL}
        for patch in row["patches"]:
            patch["example"] = EVIL
    diagnosis["trust"]["faithfulness"][0] |= {"units": EVIL, "metric": EVIL}
    for row in diagnosis["trust"]["stability"]:
        row["name"] = EVIL
    page = page_of(tree | {"diagnosis": diagnosis}, tmp_path)
    assert "<script" not in page.lower() and "&lt;script&gt;" in page


def test_tokens_are_readable(tree: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(tree, tmp_path)
    assert "<code> sorry</code>" in page and "Ġsorry" not in re.sub(r"<title>.*?</title>", "", page)


def test_causal_effects_come_by_metric_and_size(tree: dict[str, Any], tmp_path: Path) -> None:
    rows = tree["diagnosis"]["causal"]
    rows += [rows[0] | {"site": f"{layer}.mhsa_out"} for layer in range(7)]
    page = page_of(tree, tmp_path)
    assert "3 more sites, by indirect effect" in page  # 4 + 7 of one metric, 4 of the other
    shown = re.findall(r"<code>(\d+\.\w+_out)</code></th>\s*<td class=\"n\"><b data-key=", page)
    assert shown[0] == "15.ffn_out" and len(shown) == len(rows)
    for index in range(len(rows)):
        assert f'data-key="diagnosis.causal.{index}.total.rate"' in page


def test_a_diagnosis_is_written_and_read_without_torch(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """The types of its results lie in modules that don't import it."""
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    code = (
        "import json, sys\n"
        "from care.report import load_report, write_report\n"
        "tree = json.load(open('tree.json'))\n"
        "write_report(tree, 'out')\n"
        "assert load_report('out')['diagnosis']\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 0
