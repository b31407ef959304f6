"""The main job on a tiny model: it runs whole, and a job that is killed ends with the same numbers.

The tiny model talks nonsense, so a judge made up here decides which of its answers are harmful.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from care.data.small_world.suites import FIT_LENGTHS, SELECTION_LENGTHS
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.folding import check_remembers
from care.defenses.repair.presets import PRESETS
from care.defenses.repair.repair import Repair
from care.diagnosis import parts as diagnosis_parts
from care.diagnosis.neurons.suppression_search import NeuronSearch, Tried
from care.errors import UsageError
from care.models.sites import Site
from care.models.spec import ModelSpec
from care.pipeline import splits, stages
from care.pipeline import workflow as pipeline
from care.report import files as report_files
from care.report.conclusions import verdict
from care.runs.progress import Progress
from care.runs.rows import Rows
from care.runs.run import Run
from kit import tiny
from kit.jobs import COMPARED, SMALL, MadeUpJudge, a_job, files, own_files, parts, tiny_parts  # noqa: F401


@pytest.mark.slow
def test_a_job_killed_again_and_again_ends_with_the_same_numbers(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after a write, at places drawn at random over the whole job."""
    written, until = 0, 10**9

    def counting(write):
        def wrapped(*arguments, **named):
            nonlocal written
            write(*arguments, **named)
            written += 1
            if written == until:
                raise KeyboardInterrupt

        return wrapped

    monkeypatch.setattr(Rows, "add", counting(Rows.add))
    monkeypatch.setattr(Run, "record", counting(Run.record))
    options = {"test_length": 8, "batch_size": 8, "max_new_tokens": 4, **files}
    whole = pipeline.repair(a_job(tmp_path / "whole", **options))
    outcomes = whole["outcomes"]["attacks"]["before"]
    assert outcomes["harmful"] > 0 and outcomes["refused"] > 0
    check_the_control_of_monitors(whole, tmp_path / "whole")
    places = np.sort(np.random.default_rng(0).choice(written - 1, 8, replace=False)) + 1
    kills = 0
    for steps in np.diff(places, prepend=0):
        written, until = 0, max(1, int(steps))
        try:
            pipeline.repair(a_job(tmp_path / "killed", resume=True, **options))
        except KeyboardInterrupt:
            kills += 1
    until = 10**9
    again = pipeline.repair(a_job(tmp_path / "killed", resume=True, **options))
    assert kills >= 6
    assert parts(again) == parts(whole)
    assert (tmp_path / "killed" / "repair").is_dir()
    check_damaged_parts(tmp_path / "killed", whole, options)


def check_the_control_of_monitors(tree: dict, folder: Path) -> None:
    """It is asked what the other controls are, and stands beside them on the page."""
    assert tree["repair"]["monitors"] and stages.RANDOM == "random discriminant"
    check_remembers(Repair.load(folder / "repair"))
    controls = tree["controls"]
    assert controls[stages.RANDOM]["suites"].keys() == controls["random subspace"]["suites"].keys()
    asked = {row["suite"] for row in Rows(folder / "rows.jsonl").all()
             if row["defense"] == stages.RANDOM}  # fmt: skip
    assert asked == controls[stages.RANDOM]["suites"].keys()
    page = (folder / "report.html").read_text()
    assert stages.RANDOM in page[page.index("Controls") :]


def check_damaged_parts(run: Path, whole: dict, options: dict) -> None:
    """Parts that are cut, empty or of another shape are made again, with the same numbers."""
    names = ["material.json", "sites.json", "effects.json", "neurons.json", "curves.json",
             "channels.json", "decisions.safetensors"]  # fmt: skip
    before = {name: (run / name).read_bytes() for name in names}
    damages = ["", "{", "[]", "{}", '{"a": 1}', "null", "\0"]
    for name, damage in zip(names, damages, strict=True):
        (run / name).write_text(damage)
    with pytest.warns(UserWarning, match="isn't as it was written") as told:
        again = pipeline.repair(a_job(run, resume=True, **options))
    told = [str(each.message) for each in told if "as it was written" in str(each.message)]
    assert len(told) == len(names) - 1  # the first and the last are of one stage
    assert parts(again) == parts(whole)
    assert {name: (run / name).read_bytes() for name in names} == before


@pytest.mark.slow
def test_a_quick_job_says_so_wherever_its_figures_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the attacks that work are shown first of all."""
    options = {"batch_size": 8, "max_new_tokens": 4, **own_files(tmp_path, 320)}
    tree = pipeline.repair(a_job(tmp_path / "run", quick=True, **options), Progress)
    shown = capsys.readouterr().err
    assert shown.count("This attack works: ") == shown.count("  answered: ") == 3
    assert shown.rindex("  answered: ") < shown.index("\nchannels ")
    said = "a quarter of the examples"
    assert all(15 < suite["n"] < 35 for suite in tree["suites"])  # of about 96 goals to test on
    assert tree["manifest"]["quick"] == tree["manifest"]["config"]["quick"] == said
    assert tree["title"].endswith(f"(quick: {said})")
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"<b>Quick:</b> fitted, chosen and tested on {said}" in page
    assert (
        f"Quick: fitted, chosen and tested on {said}"
        in (tmp_path / "run" / "repair" / "README.md").read_text()
    )
    assert Repair.load(tmp_path / "run" / "repair").manifest["quick"] == said
    with pytest.raises(UsageError, match="quick"):
        pipeline.repair(a_job(tmp_path / "run", resume=True, **options))
    with pytest.raises(UsageError, match="leave out --quick"):
        pipeline.diagnose(a_job(tmp_path / "other", quick=True))


@pytest.mark.slow
def test_a_diagnosis_judges_answers_under_both_repairs_and_is_resumed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model never begins with a refusal, so the search is made to find something."""
    verdicts = []

    def found(vlm, ranking, attacks, benign, **options):
        one = tuple(ranking[:1])
        repair = NeuronSuppression.of(vlm, one, "zero")
        return NeuronSearch(repair, Tried((), 0.9, 0.0), Tried(one, 0.5, 0.0), ())

    monkeypatch.setattr(diagnosis_parts, "search_neurons", found)
    monkeypatch.setattr(pipeline, "DiagnosisConfig", lambda: SMALL)
    monkeypatch.setattr(report_files, "verdict", lambda tree: verdicts.append(1) or verdict(tree))
    options = {"test_length": 8, "batch_size": 8, "max_new_tokens": 4, **files}
    out = tmp_path / "run"
    first = pipeline.diagnose(a_job(out, **options))
    assert len(verdicts) == 1  # and both the page and the command line show that one
    assert first == json.loads((out / "diagnosis.json").read_text())
    judged = first["neurons"]["repair"]["judged"]
    assert judged["neurons"] == 1 and judged["within_margin"] is True
    assert [item["edit"] for item in judged["edits"]] == ["none", "neurons", "subspace"]
    assert judged["difference"]["n"] == 5
    said = [
        text for text in (*first["supported"], *first["unsupported"]) if "whole answers" in text
    ]
    assert len(said) == 1 and "suppressing 1 neuron " in said[0]
    assert "Judged answers to other requests" in (out / "diagnosis.html").read_text()
    rows = Rows(out / "neuron-answers" / "rows.jsonl").all()
    used = NeuronSuppression.load(out / "neurons-repair.json").neurons
    assert len(rows) == 3 * 2 * 5 and list(map(list, used)) == first["neurons"]["repair"]["neurons"]
    assert [row["kind"] for row in first["trust"]["stability"]].count("intervention") == 1
    assert pipeline.diagnose(a_job(out, resume=True, **options)) == first


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_papers_layers_are_those_of_the_ablation_and_the_releases_are_fixed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    config = PRESETS[preset]
    small = replace(config.subspace, rank=2, ridge=1e-2)
    monkeypatch.setitem(PRESETS, preset, replace(config, subspace=small))
    job = a_job(tmp_path / "run", preset=preset, batch_size=8, max_new_tokens=4, **files)
    repair = Repair.load(pipeline.fit(job))
    sites = json.loads((tmp_path / "run" / "sites.json").read_text())
    whole = [row for row in sites["layers"] if row["component"] == "layer"]
    best = sorted(whole, key=lambda row: -row["selectivity_low"])[:3]
    layers = {"paper": {row["layer"] for row in best}, "official": {2}}[preset]
    assert repair.sites == tuple(Site(layer, "ffn_out") for layer in sorted(layers))
    assert not (tmp_path / "run" / "channels.json").exists()
    assert repair.manifest["config"]["attribution"]["text_share"] == 0.2


def test_a_repair_is_not_fitted_on_the_sample_of_a_diagnosis(tmp_path: Path) -> None:
    job = a_job(tmp_path / "run")
    read = splits.Splits(job)
    with pipeline.open_run(job, read) as run:
        run.record(sampled=True)
        work = stages.Stages(job, run, None, sampled=True, splits=read)
        lengths, checked = (
            {suite.name: len(suite) for suite in work.suites(split)}
            for split in ("fit", "validation")
        )
    assert checked["benign"] == splits.SAMPLED_BENIGN < SELECTION_LENGTHS["over_refusal"]
    assert checked["text-jailbreak"] == SELECTION_LENGTHS["attack"]
    assert lengths["beside-image"] == FIT_LENGTHS["beside-image"] // splits.SAMPLE
    resumed = a_job(job.run.out, resume=True)
    for command in (pipeline.repair, pipeline.fit):
        with pytest.raises(UsageError, match="sample of the examples"):
            command(resumed)


def test_another_model_or_file_is_refused_when_a_job_is_resumed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "gather", interrupted)
    job = a_job(tmp_path / "run", resume=True, test_length=8, batch_size=8, **files)
    for command in (pipeline.repair, pipeline.diagnose, pipeline.fit):
        with pytest.raises(KeyboardInterrupt):
            command(job)
    other = tiny.tiny_vlm(7)
    monkeypatch.setattr(ModelSpec, "load", lambda self: other)
    with pytest.raises(UsageError, match=r"The model of the run .* changed"):
        pipeline.repair(job)
    tiny.picture(99).save(tmp_path / "3.png")  # of a request to fit on, validate or test
    monkeypatch.setattr(ModelSpec, "load", lambda self: pytest.fail("loaded in vain"))
    with pytest.raises(UsageError, match=r"The files of the run .* \(attacks: "):
        pipeline.diagnose(job)
