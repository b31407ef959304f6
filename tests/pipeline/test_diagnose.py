"""`care.diagnose` finds what the command finds, and a repair mends the sites that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import care
from care.diagnosis.full import closed_channels
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.neurons.search import NeuronConfig
from care.diagnosis.reliability import ReliabilityConfig
from care.diagnosis.results import Diagnosis
from care.diagnosis.site_scan_config import SiteScanConfig
from care.errors import DataError
from care.pipeline import workflow
from care.pipeline.config import RepairJob
from care.pipeline.splits import split_examples, suites_of
from care.runs.spec import RunSpec
from care.statistics.sampling import SamplingSpec
from kit import tiny
from kit.jobs import MadeUpJudge, files, tiny_parts  # noqa: F401

FEW = SamplingSpec(resamples=100)
SMALL = DiagnosisConfig(
    sites=SiteScanConfig(
        windows=(1,), max_attacks=4, max_benign=3, top_sites=1, generate_examples=2, sampling=FEW
    ),
    neurons=NeuronConfig(verified=8, described=0, sampling=FEW),
    curves=None,
    stability=ReliabilityConfig(splits=10, sampling=FEW),
    neuron_prompts=8,
    reseeded=0,
    rescanned=3,
    repair_prompts=4,
    judged=0,
)


def sides(job: RepairJob, split: str) -> tuple[list[care.Example], list[care.Example]]:
    suites = suites_of(job, split)
    return (
        split_examples(suites, lambda suite: suite.role == "attack"),
        split_examples(suites, lambda suite: suite.role != "attack"),
    )


@pytest.mark.slow
def test_the_function_finds_what_the_command_finds(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "DiagnosisConfig", lambda: SMALL)
    run = RunSpec(tmp_path / "run", batch_size=8)
    job = RepairJob(run=run, max_new_tokens=4, **files)
    workflow.diagnose(job)
    told, vlm = Diagnosis.load(job.run.out), tiny.tiny_vlm()
    attacks, benign = sides(job, "fit")
    found = care.diagnose(
        vlm,
        attacks,
        benign,
        validation=sides(job, "validation"),
        config=SMALL,
        judge=MadeUpJudge(),
        batch_size=8,
        max_new_tokens=4,
    )
    assert told.supported and found == replace(told, supported=(), unsupported=())
    assert found.channels is not None and found.trust is not None and found.neurons is not None
    assert found.neurons.repair is not None
    assert str(found).startswith(found.verdict)
    options = {"judge": MadeUpJudge(), "batch_size": 8}
    repair = care.Repair.fit(vlm, attacks, benign, sites=found.sites, **options)
    if found.sites:
        named = {(m, site) for m, sites in found.sites.items() for site in sites}
        assert {(channel.modality, channel.site) for channel in repair.channels} == named


@pytest.mark.slow
def test_goals_are_held_out_where_no_others_are_given(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = RepairJob(**files)
    everything = [
        [example for split in ("fit", "validation", "test") for example in sides(job, split)[side]]
        for side in (0, 1)
    ]
    scanned: list[set[str]] = []

    def noted(fitter, attacks, benign, **options):
        fitted = {example.goal for example, _ in fitter.material.complied}
        scanned.append({example.goal for example in attacks})
        assert fitted and not fitted & scanned[-1]
        return closed_channels(fitter, attacks, benign, **options)

    monkeypatch.setattr("care.diagnosis.full.closed_channels", noted)
    config = replace(SMALL, rescanned=0, repair_prompts=0)
    found = care.diagnose(tiny.tiny_vlm(), *everything, config=config, judge=MadeUpJudge())
    assert 20 < len(scanned[0]) < 55 and found.neurons.repair is None
    with pytest.raises(DataError, match=r"The 1 attacks have too few goals .* pass `validation`"):
        care.diagnose(tiny.tiny_vlm(), everything[0][:1], everything[1])
