"""Recipes, the dry run and the doctor: what a job would be, before it is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from care.data.benchmark import Benchmark
from care.data.registry import REGISTRY
from care.data.source import Source
from care.interfaces.cli import app as cli
from care.judges.registry import check_judge
from care.models.spec import ModelSpec
from care.pipeline import workflow
from care.pipeline.config import RepairJob
from care.pipeline.dry_run import GPU_CLASSES, AnswerPace, dry_run
from care.pipeline.forecast import StageWork
from care.pipeline.recipe import read_recipe, recipe_names
from care.pipeline.splits import plan_of
from care.runs.spec import RunSpec
from kit import suite_copies as copies
from kit import tiny
from kit.hub import FakeHub, hub  # noqa: F401
from kit.jobs import own_files
from kit.suite_copies import own_cache  # noqa: F401


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[RepairJob]:
    """The jobs that commands start, which do nothing."""
    found: list[RepairJob] = []

    def fit(job: RepairJob, progress: Any) -> Path:
        found.append(job)
        return Path("repair")

    monkeypatch.setattr(workflow, "fit", fit)
    monkeypatch.setattr(workflow, "repair", lambda job, progress: found.append(job))
    return found


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_recipe_fills_what_the_command_line_leaves_open(
    jobs: list[RepairJob], tmp_path: Path
) -> None:
    recipe = write(
        tmp_path / "mine.yaml",
        "about: mine\njob: {model: some/model, seed: 3, out: here, quick: true, pgd: [32],"
        " attacks: figstep, benign: [jbb-benign, xstest], max-new-tokens: 9, preset: paper}\n",
    )
    assert cli.main(["fit", "--recipe", recipe]) == 0
    model, run = ModelSpec("some/model"), RunSpec(Path("here"), seed=3)
    named = {"attacks": ("figstep",), "benign": ("jbb-benign", "xstest"), "pgd": ("32",)}
    own = {"max_new_tokens": 9, "preset": "paper", "quick": True}
    assert jobs == [RepairJob(model=model, run=run, **named, **own)]
    given = ["other", "--seed", "0", "--attacks", "advbench", "--preset", "corrected"]
    assert cli.main(["fit", *given, "--recipe", recipe]) == 0
    assert jobs[1].model.name == "other" and jobs[1].run.seed == 0  # though 0 is the default
    assert jobs[1].attacks == ("advbench",) and jobs[1].preset == "corrected"
    assert jobs[1].benign == named["benign"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: a\njob: {atacks: x}", "no option here; did you mean attacks?"),
        ("about: a\njob: {zzz: x}", "which is no option here; there are model"),
        ("about: a\njob: {seed: three}", "`seed` is 'three'"),
        ("about: a\njob: {attacks: [1.5]}", "attacks"),
        ("about: a\njob: {preset: mine}", "preset"),
        ("about: a\nmodel: x", "model"),
        ("- a", "about"),
        ("about: [", "is no YAML"),
        ("about: a\njob: {seed: -1}", "seed must be at least 0"),
    ],
)
def test_a_recipe_that_is_none_is_told_in_a_sentence(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", "--recipe", write(tmp_path / "r.yaml", text)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and said.count("\n") == 1 and message in said


def test_an_unknown_recipe_is_told_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["fit", "--recipe", "nowhere"]) == 2
    assert "paper-llava-1.5-7b" in capsys.readouterr().err
    assert cli.main(["list", "recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in recipe_names())
    assert cli.main(["list", "recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == set(recipe_names())


def from_copies(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Published suites are fetched from small copies of their layout, of which pictures too."""

    def suite(self: Benchmark, path: Any = None, images: Any = None, *rest: Any) -> Any:
        where = folder / self.name
        if not where.exists():
            made = copies.make(self.name)
            if self.name == "or-bench-hard":  # a copy has too few goals to lie in every split
                rows, column = made.rows(), self.options["prompt"]
                said = (f"Tell me about number {n} of {n * 7}" for n in range(20))
                made.tables[made.first] = rows + [{**rows[0], column: goal} for goal in said]
            made.write(where)
        return whole(self, where, images, *rest)

    whole = Benchmark.suite
    monkeypatch.setattr(Benchmark, "suite", suite)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_of_the_package_makes_a_job_on_suites_of_the_published_layout(
    name: str, jobs: list[RepairJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.main(["fit", "--recipe", name, "--out", str(tmp_path / "run")]) == 0
    (job,) = jobs
    for wanted in read_recipe(name).job["judge"]:
        check_judge(wanted)
    assert job.model.name and job.preset == "paper" and job.pgd and job.leaks == "leave-out"
    roles = {REGISTRY[name].role for name in job.attacks}
    assert roles == {"attack"} and {REGISTRY[name].role for name in job.utility} == {"utility"}
    from_copies(monkeypatch, tmp_path / "copies")
    plan = plan_of(job)
    assert {s.name for s in plan["test"]} >= {*job.test}
    assert all(any(s.role == "attack" for s in suites) for suites in plan.values())


@pytest.mark.slow
def test_a_dry_run_counts_what_the_job_would_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = tiny.tiny_vlm()
    monkeypatch.setattr(ModelSpec, "load", lambda self: vlm)
    files = own_files(tmp_path)
    job = RepairJob(model=ModelSpec(str(tmp_path)), **files, max_new_tokens=4)
    found = dry_run(job)
    plan = plan_of(job)
    count = {split: sum(map(len, suites)) for split, suites in plan.items()}
    asked = {stage.name: stage.answers for stage in found.stages}
    assert asked["material"] == count["fit"]
    assert asked["selection"] == count["validation"] * 4  # bare, two finalists, with monitors
    assert asked["evaluation"] == count["test"] * 4  # bare, repaired, its two parts
    assert found.disk is None  # nothing is known of the model
    assert not found.steps and sum(found.sizes["attacks"].values()) == 120
    options = [f"--{name}={path}" for name, path in files.items()]
    given = ["repair", str(tmp_path), *options, "--max-new-tokens=4", "--dry-run", "--gpu=h100"]
    assert cli.main([*given, "--batch-size=4"]) == 0
    shown = capsys.readouterr().out
    assert "Measured here" in shown and "On h100" in shown and "Written, at most" in shown
    assert all(stage in shown for stage in ("sites", "neurons", "channels", "screening"))
    assert not (Path("runs/repair")).exists()
    assert cli.main([*given[:-1], "--gpu=z"]) == 2
    assert "l40s" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_fetched_and_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    own_cache: None,
) -> None:  # fmt: skip
    monkeypatch.setattr(Source, "fetch", lambda *_: pytest.fail("nothing may be fetched"))
    files = own_files(tmp_path)
    named = {"attacks": ("figstep", str(files["attacks"])), "benign": (str(files["benign"]),)}
    job = RepairJob(model=ModelSpec("some/model"), **named, test=("vlguard-unsafe",), pgd=("32",))
    found = dry_run(job)
    told = {need.name: need for need in found.needed}
    assert not told["figstep"].at_hand and "is fetched from" in told["figstep"].to_do
    assert "terms" in told["vlguard-unsafe"].to_do
    assert found.sizes.keys() == {"attacks", "benign"}
    assert found.steps == 120
    options = ["--attacks", ",".join(named["attacks"]), "--benign", named["benign"][0]]
    assert cli.main(["repair", "some/model", *options, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Not at hand, not counted: figstep; " in shown
    assert "model some/model: not fetched" in shown
    assert "some/model: size not known: the Hub is switched off by HF_HUB_OFFLINE." in shown
    assert "To fetch: 2 sizes not known." in shown
    assert dry_run(RepairJob(attacks=("figstep",), benign=("xstest",))).sizes == {}


def test_a_dry_run_says_how_large_what_it_fetches_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_cache: None,
    hub: FakeHub,
) -> None:  # fmt: skip
    hub.listed["some/model"] = {"config.json": 1, "model.safetensors": 16_600_000_000}
    at = REGISTRY["or-bench-hard"].source.at
    hub.listed[at] = {"or-bench-hard-1k.csv": 250_000_000, "or-bench-80k.csv": 10**10}
    options = ["--attacks=figstep", "--benign=or-bench-hard", "--judge=harmbench", "--judge=rules"]
    hub.listed["cais/HarmBench-Llama-2-13b-cls"] = {"README.md": 1}
    assert cli.main(["repair", "some/model", *options, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "To fetch: 16.6 GB of model, 250 MB of suites (2 sizes not known)." in shown
    assert "250 MB to fetch" in shown and "it comes from GitHub" in shown
    assert "harmbench: size not known: the Hub lists no weights to load." in shown
    assert len(hub.asked) == 3 and hub.heads == 1
    hub.keep("some/model", "config.json")
    monkeypatch.setattr(ModelSpec, "load", lambda _: pytest.fail("nothing may be fetched"))
    assert cli.main(["repair", "some/model", *options, "--dry-run"]) == 0
    assert "model some/model: fetched in part; the rest is" in capsys.readouterr().out
    assert cli.main(["doctor", "some/model", *options, "--json"]) == 0
    found = {each["about"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["to fetch"]["bytes"] == 16_850_000_000
    assert found["--benign or-bench-hard"]["bytes"] == 250_000_000
    assert found["--attacks figstep"]["bytes"] is None
    assert found["hub"]["found"].endswith("answers")


def test_a_suite_that_was_fetched_is_at_hand(tmp_path: Path, own_cache: None) -> None:
    from care.data.at_hand import needs

    assert not needs("advbench").at_hand
    card = REGISTRY["advbench"]
    copy = copies.make("advbench")
    place = card.source.place() / "fetched" / card.source.revision[:16]
    copy.write(place)
    assert needs("advbench").at_hand and not needs("advbench").to_do


def test_hours_follow_from_the_pace_and_scale_with_what_bounds_them() -> None:
    pace = AnswerPace(prompt=2.0, token=0.5, batch=10, weights_gib=1.0, layers=10, peak_gib=2.0)
    stages = [StageWork("a", 100, 1000, 100), StageWork("b", 0, 500, 100, share=0.5)]
    assert pace.hours(stages) == pytest.approx((15 * 2.0 + 150 * 0.5) / 3600)
    gpu = GPU_CLASSES["h200"]
    same = pace.on(gpu, type(gpu)(gpu.bandwidth / 2, gpu.arithmetic / 2, 0))
    assert (same.prompt, same.token) == pytest.approx((2.0, 0.5))
    fast = pace.on(gpu, type(gpu)(1.0, 1.0, 0))  # a machine as slow as that isn't what bounds it
    assert (fast.prompt, fast.token) == pytest.approx((0.008, 0.008))


def test_the_doctor_tells_all_in_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cache: None
) -> None:
    files = own_files(tmp_path)
    options = ["some/model", f"--attacks={files['attacks']},advbench", "--benign=xstest"]
    assert cli.main(["doctor", *options, "--judge=rules", "--judge=harmbench"]) == 0
    shown = capsys.readouterr().out
    for said in ("torch", "memory", "HF_HUB_OFFLINE", "some/model", "judge harmbench", "MIT"):
        assert said in shown
    assert cli.main(["doctor", "--json"]) == 0
    found = {each["about"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["hub"]["found"].startswith("switched off")
    assert {"python", "cores", "disk for suites", "judge rules"} <= found.keys()
