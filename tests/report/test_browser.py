"""The report as a real browser shows it: headless Chromium on a `file://` page."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from care.report.comparison import write_comparison
from care.report.comparison_charts import pareto_chart
from care.report.evaluation import page_of
from care.report.files import load_report, write_report
from care.report.studies import write_studies
from care.statistics.intervals import wilson
from kit import comparisons
from kit.cards import write_card
from kit.pages import Page
from kit.reports import OUTCOMES, report_tree

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium on PATH; Debian: apt-get install chromium"
    ),
]

FINDINGS: list[tuple[str, Any, tuple[str, ...]]] = [
    (
        "diagnosis.heatmap.{}",
        lambda d: d["heatmap"],
        ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low"),
    ),
    (
        "diagnosis.comparison.{}",
        lambda d: d["comparison"],
        ("ffn.rate", "mhsa.low", "difference.rate", "difference.low", "difference.high"),
    ),
    (
        "diagnosis.causal.{}",
        lambda d: d["causal"],
        ("total.rate", "direct.low", "indirect.rate", "reversed_indirect.high", "noising.rate"),
    ),
    ("diagnosis.neurons.found.{}", lambda d: d["neurons"]["found"], ("estimate", "exact", "low")),
    ("diagnosis.neurons.controls.{}", lambda d: d["neurons"]["controls"], ("exact", "high")),
    (
        "diagnosis.trust.faithfulness.0.points.{}",
        lambda d: d["trust"]["faithfulness"][0]["points"],
        ("faithfulness.rate", "faithfulness.low", "completeness.high", "metric.rate"),
    ),
    (
        "diagnosis.trust.stability.{}",
        lambda d: d["trust"]["stability"],
        ("spearman.rho", "spearman.low", "spearman.high"),
    ),
]


def chromium(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=600,  # a busy machine may be very slow
        check=True,
    )
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("report")
    html_path, json_path = write_report(report_tree(), folder)
    dom, log = chromium(folder, "--dump-dom", html_path.as_uri())
    return Page(dom), log, load_report(json_path), html_path


def test_charts_are_in_the_dom(shown: tuple[Page, str, dict[str, Any], Path]) -> None:
    page, _, tree, _ = shown
    n_suites, n_layers = len(tree["suites"]), len(tree["diagnosis"]["layers"])
    attacks = sum(suite["role"] == "attack" for suite in tree["suites"])
    assert page.count("line", "bar") == 2 * n_suites + attacks  # before and after; transfer
    assert page.count("rect", "o-refused") >= n_suites
    assert page.count("path", "band") == 3 + 2  # components, channel scan of each modality
    assert page.count("circle", "ring") == (2 + 1) + (1 + 1) + (
        2 + 1
    )  # recommended sites and legends
    cells = tree["diagnosis"]["heatmap"]
    assert page.count("rect", "more") + page.count("rect", "less") == len(cells) + 15  # the ramp
    assert page.count("rect", "frame") == len(tree["diagnosis"]["recommended"])
    curves = tree["diagnosis"]["trust"]["faithfulness"]
    assert page.count("path", "spread") == 2 * 2 * len(curves)  # panels, random and own
    neurons = tree["diagnosis"]["neurons"]
    assert page.count("line", "whisker") == len(neurons["found"]) + len(neurons["controls"])
    assert page.count("line", "null") == 2 * len(tree["repair"]["channels"])
    assert n_layers + len(tree["diagnosis"]["channels"]["sites"]) <= page.count("g", "datum")
    assert page.count("table", "gate") == 2
    assert page.count("g", "heat") == 3


def test_no_network_and_no_console_errors(shown: tuple[Page, str, dict[str, Any], Path]) -> None:
    page, log, _, _ = shown
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert all(value.startswith(("#", "data:image/")) for value in page.addresses())


def test_table_numbers_equal_the_json(shown: tuple[Page, str, dict[str, Any], Path]) -> None:
    page, _, tree, _ = shown
    for i, suite in enumerate(tree["suites"]):
        for when in ("before", "after"):
            for key in ("rate", "low", "high"):
                text = page.values[f"suites.{i}.{when}.{key}"]
                assert text == f"{100 * suite[when][key]:.1f}%"
            for name in OUTCOMES:
                text = page.values[f"{suite['name']}|{when}|{name}"]
                assert int(text) == tree["outcomes"][suite["name"]][when][name]
        assert int(page.values[f"suites.{i}.n"]) == suite["n"]
        found = [int(page.values[f"suites.{i}.discordant.{j}"]) for j in range(2)]
        assert found == suite["discordant"]
        for key in ("p_mcnemar", "p_holm"):
            text, p = page.values[f"suites.{i}.{key}"], suite[key]
            assert text == "<0.001" if p < 0.001 else float(text) == pytest.approx(p, abs=0.006)
    for key in ("mean_asr_before", "mean_asr_after", "utility_after", "answered_after"):
        assert page.values[f"summary.{key}"] == f"{100 * tree['summary'][key]:.1f}%"


def test_findings_equal_the_json(shown: tuple[Page, str, dict[str, Any], Path]) -> None:
    page, _, tree, _ = shown

    def points(key: str) -> float:
        return float(page.values[key].replace("\N{MINUS SIGN}", "-"))

    assert tree["diagnosis"]["verdict"] == page.values["diagnosis.verdict"]
    for i, item in enumerate(tree["diagnosis"]["channels"]["sites"]):
        for key in ("effect", "low", "high", "benign_effect", "selectivity", "selectivity_low"):
            shown_points = points(f"diagnosis.channels.sites.{i}.{key}")
            assert shown_points == pytest.approx(100 * item[key], abs=0.051), (i, key)
        for key in ("n_attacks", "n_benign"):
            assert int(page.values[f"diagnosis.channels.sites.{i}.{key}"]) == item[key]
    for i, item in enumerate(tree["diagnosis"]["layers"]):
        for key in ("effect", "benign_effect", "selectivity", "selectivity_low"):
            found = points(f"diagnosis.layers.{i}.{key}")
            assert found == pytest.approx(item[key], rel=0.006, abs=5e-5), (i, key)
    for key, rows, fields in FINDINGS:
        for i, item in enumerate(rows(tree["diagnosis"])):
            for path in fields:
                found, value = points(f"{key.format(i)}.{path}"), item
                for step in path.split("."):
                    value = value[step]
                assert found == pytest.approx(value, rel=0.006, abs=5e-4), (key, i, path)
    for key in ("supported", "unsupported"):
        for i, sentence in enumerate(tree["diagnosis"][key]):
            assert page.values[f"diagnosis.{key}.{i}"] == sentence
    for i, channel in enumerate(tree["repair"]["channels"]):
        key, gate = f"repair.channels.{i}.gate", channel["gate"]
        if gate is None:
            assert f"{key}.open_benign" not in page.values
            continue
        assert page.values[f"{key}.open_benign"] == f"{100 * gate['open_benign']:.1f}%"
        for family, share in gate["open"].items():
            assert page.values[f"{key}.open.{family}"] == f"{100 * share:.1f}%"


def test_screenshot_shows_coloured_charts(
    shown: tuple[Page, str, dict[str, Any], Path], tmp_path: Path
) -> None:
    html_path = shown[3]
    target = tmp_path / "page.png"
    chromium(tmp_path, f"--screenshot={target}", "--window-size=1200,4000", html_path.as_uri())
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (4000, 1200, 3)
    style = html_path.read_text(encoding="utf-8")
    for name in ("harmful", "refused", "degenerate", "safe"):
        match = re.search(rf"--{name}: #(\w\w)(\w\w)(\w\w)", style)
        assert match is not None
        colour = np.array([int(part, 16) for part in match.groups()])
        assert (np.abs(pixels - colour).max(axis=2) <= 2).sum() > 50, name


def test_the_page_of_an_evaluation_needs_nothing_else_and_shows_its_charts(tmp_path: Path) -> None:
    page_path = page_of(write_card(tmp_path))
    dom, log = chromium(tmp_path, "--dump-dom", page_path.as_uri())
    page = Page(dom)
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert all(value.startswith(("#", "data:image/")) for value in page.addresses())
    assert page.count("path", "open-end") == 1 and page.count("rect", "alarm") == 2 * 3
    target = tmp_path / "page.png"
    chromium(tmp_path, f"--screenshot={target}", "--window-size=1200,6000", page_path.as_uri())
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    style = page_path.read_text(encoding="utf-8")
    for look in ("side-1", "side-2"):
        match = re.search(rf"\.mark\.{look} {{ fill: #(\w\w)(\w\w)(\w\w)", style)
        assert match is not None
        colour = np.array([int(part, 16) for part in match.groups()])
        assert (np.abs(pixels - colour).max(axis=2) <= 2).sum() > 50, look


MEASURE = """
<pre id="boxes"></pre><script>
const found = [...document.querySelectorAll("svg .name")].map(text => {
  const box = text.getBoundingClientRect();
  return [text.textContent, box.left, box.top, box.right, box.bottom];
});
document.getElementById("boxes").textContent = JSON.stringify(found);
</script>
"""


def test_every_name_of_a_large_comparison_is_readable_once(tmp_path: Path) -> None:
    made = comparisons.table()
    care, rival = made.rows[1], made.rows[2]
    rng = np.random.default_rng(0)
    hits = [(0, 300), (0, 300), (1, 300), (80, 290), (220, 300), (6, 200)]  # most upon each other
    rows = [made.rows[0]]
    for place in range(36):
        harmful, use = hits[place % len(hits)]
        row = care if place < 12 else rival
        rates = [min(300, number + int(rng.integers(0, 3))) for number in (harmful, use, use)]
        asr, answered, utility = (wilson(number, 300) for number in rates)
        name = f"care: change number {place}" if place < 12 else f"rival {place}"
        rows.append(replace(row, name=name, asr=asr, answered=answered, utility=utility))
    style = write_comparison(made, tmp_path).read_text(encoding="utf-8")
    css = style[style.index("<style>") : style.index("</style>") + len("</style>")]
    chart = tmp_path / "chart.html"
    chart.write_text(f'<meta charset="utf-8">{css}{pareto_chart(rows)}{MEASURE}', encoding="utf-8")
    dom, _ = chromium(tmp_path, "--window-size=1000,700", "--dump-dom", chart.as_uri())
    held = re.search(r'<pre id="boxes">(.*?)</pre>', dom)
    assert held is not None
    boxes = {name: box for name, *box in json.loads(unescape(held[1]))}
    assert {row.name for row in rows if row.group != "rival"} <= boxes.keys()
    assert len(boxes) == len(re.findall('class="name"', dom))
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        across = min(a[2], b[2]) - max(a[0], b[0])
        down = min(a[3], b[3]) - max(a[1], b[1])
        # Boxes have room above and below the letters, so lines of a block may meet by a little.
        assert across <= 0 or down <= 2.5, (one, other)


def test_the_page_of_a_comparison_shows_further_studies_and_needs_nothing_else(
    tmp_path: Path,
) -> None:
    write_studies(comparisons.studies(), tmp_path)
    page_path = write_comparison(comparisons.table(), tmp_path)
    dom, log = chromium(tmp_path, "--dump-dom", page_path.as_uri())
    page = Page(dom)
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert all(value.startswith(("#", "data:image/")) for value in page.addresses())
    assert page.count("path", "c-attack") and page.count("rect", "c-attack")
    assert page.count("circle", "before") and page.count("text", "name")
