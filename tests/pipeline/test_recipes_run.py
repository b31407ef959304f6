"""Recipes run whole: on a tiny model of their architecture, with suites of the published layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from care.attacks import presets
from care.data.benchmark import Benchmark
from care.interfaces.cli import app as cli
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.pipeline import made_pictures
from care.pipeline.recipe import read_recipe
from kit import suite_copies as copies
from kit import tiny
from kit.jobs import own_files, tiny_parts  # noqa: F401
from kit.suite_copies import own_cache  # noqa: F401

pytestmark = pytest.mark.slow

ASKED = {"advbench": "wicked", "or-bench-hard": "goodly", "jbb-harmful": "worse"}
"""A word in every request of a suite, by which the made-up judge tells harm."""

FAMILIES = {"paper-llava-1.5-7b": "llava", "paper-qwen2.5-vl-7b": "qwen2_5_vl"}

DESCENDED = ("paper-llava-1.5-7b",)
"""Those whose pictures are made here too."""


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Suites are read from copies of their layout, with requests enough to fit on."""
    whole = Benchmark.suite

    def suite(self: Benchmark, path=None, images=None, *rest):
        where = tmp_path / "copies" / self.name
        if not where.exists():
            made = copies.make(self.name)
            if word := ASKED.get(self.name):
                row, column = made.rows()[0], self.options["prompt"]
                count = 10 if self.name == "jbb-harmful" else 100
                said = (f"{word} thing {n}?" for n in range(count))
                made.tables[made.first] = [{**row, column: prompt} for prompt in said]
            made.write(where)
        return whole(self, where, images, *rest)

    monkeypatch.setattr(Benchmark, "suite", suite)
    monkeypatch.setattr(made_pictures, "DESCENDED", 2)
    for name in ("pgd-32", "pgd-unconstrained"):
        config = replace(presets.PRESETS[name], steps=1, batch=2)
        monkeypatch.setitem(presets.PUBLISHED, name, presets.PublishedAttack("jailbreak", config))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_runs_whole_and_is_gone_on_with(
    name: str, published: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vlm = VLM(*tiny.FAMILIES[FAMILIES[name]](), name="tiny")
    monkeypatch.setattr(ModelSpec, "load", lambda self: vlm)
    own = own_files(tmp_path)
    suites = [f"--attacks=advbench,{own['attacks']}", f"--benign=or-bench-hard,{own['benign']}"]
    suites += ["--test=jbb-harmful", "--utility=mmbench-plain"]
    small = ["--pgd=8", "--judge=rules", "--max-new-tokens=4"]
    recipe = name
    if name not in DESCENDED:  # a stand-in of its processor can't be differentiated through
        job = {k: v for k, v in read_recipe(name).job.items() if k != "pgd"}
        recipe, small = str(tmp_path / "recipe.yaml"), small[1:]
        Path(recipe).write_text(json.dumps({"about": "without pictures", "job": job}))
    out = tmp_path / "run"
    given = ["repair", "--recipe", recipe, *suites, *small, "--batch-size=8", f"--out={out}"]
    assert cli.main(given) == 0
    tree = json.loads((out / "report.json").read_text("utf-8"))
    asked = {suite["name"] for suite in tree["suites"]}
    named = {"advbench", "attacks", "or-bench-hard", "benign", "jbb-harmful", "mmbench-plain"}
    assert asked == named | ({"made-pgd-8"} if name in DESCENDED else set())
    assert tree["repair"]["preset"] == "paper"
    assert tree["manifest"]["config"]["dtype"] == "bfloat16"  # of the recipe
    licences = {key: facts["licence"] for key, facts in tree["manifest"]["suites"].items()}
    assert licences["advbench/fit"] == "MIT"
    rows = (out / "rows.jsonl").read_bytes()
    assert cli.main([*given, "--resume"]) == 0
    assert (out / "rows.jsonl").read_bytes() == rows
