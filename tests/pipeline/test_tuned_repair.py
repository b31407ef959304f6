"""A job whose repair is searched: its report tells every setting, and it survives a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.errors import FitError, UsageError
from care.evaluation import runner
from care.pipeline import tuned_repair, workflow
from care.pipeline.care_settings import CareSettings
from care.pipeline.tuning import TuningSize
from kit.jobs import a_job, files, parts, tiny_parts  # noqa: F401

SIZE = TuningSize(3, 2, {"attack": 6, "utility": 6, "over_refusal": 6})
FEW: dict[str, Any] = {"test_length": 8, "batch_size": 8, "max_new_tokens": 4, "tune": True}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_repair, "FULL", SIZE)


@pytest.mark.slow
def test_a_job_that_is_killed_at_a_setting_ends_with_the_same_report(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = workflow.repair(a_job(tmp_path / "whole", **FEW, **files))
    selection = whole["repair"]["selection"]
    bare, *tried = selection["candidates"]
    assert bare["name"] == "none" and len(tried) == 3 and not selection["screened"]
    assert [each["chosen"] for each in tried].count(True) == 1 and not bare["chosen"]
    assert "strength = 1.2" in tried[0]["name"] and "false_alarms = 0.05" in tried[0]["name"]
    assert "of 3 settings at most" in selection["rule"] and selection["monitors"]["choices"]
    page = (tmp_path / "whole" / "report.html").read_text()
    assert all(each["name"] in page for each in tried)
    taken = Repair.load(tmp_path / "whole" / "repair")
    best = next(each["name"] for each in tried if each["chosen"])
    thresholds = [monitor.threshold for monitor in taken.monitors]
    stored = [Repair.load(folder) for folder in (tmp_path / "whole" / "fits").iterdir()]
    assert len(stored) == 3
    assert thresholds in [[monitor.threshold for monitor in one.monitors] for one in stored]
    layers = [channel.site.layer for channel in taken.channels if channel.modality == "image"]
    assert f"strength = {taken.channels[0].strength}" in best and f"image_layers = {layers}" in best
    assert taken.memory is not None
    again = [each.monitor().threshold for each in taken.memory.monitors]
    assert again == pytest.approx(thresholds, abs=1e-4)  # the share that was taken

    made, fitted = CareSettings.made, []

    def once(self: CareSettings, options: Any, number: int = 0) -> Any:
        fitted.append(options)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return made(self, options, number)

    monkeypatch.setattr(CareSettings, "made", once)
    with pytest.raises(KeyboardInterrupt):
        workflow.repair(a_job(tmp_path / "killed", **FEW, **files))
    job = a_job(tmp_path / "killed", resume=True, **FEW, **files)
    assert parts(workflow.repair(job)) == parts(whole)
    assert len(fitted) == 4 and fitted[1] == fitted[2] != fitted[0]
    monkeypatch.setattr(runner, "_judge", lambda *_: pytest.fail("it was judged already"))
    assert parts(workflow.repair(job)) == parts(whole)
    with pytest.raises(UsageError, match="tune"):
        workflow.repair(replace(job, tune=False))


@pytest.mark.slow
def test_a_preset_without_monitors_is_searched_and_fitted_alone(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released K, 64, can't be fitted on so few."""
    job = a_job(tmp_path / "run", preset="official", **FEW, **files)
    folder = workflow.fit(job)
    found = json.loads((tmp_path / "run" / "selection.json").read_text())
    names = [each["name"] for each in found["candidates"]]
    assert "monitors" not in found and "monitors" not in found["rule"]
    assert 2 <= len(names) <= 4 and not any("rank = 64" in name for name in names)
    assert not Repair.load(folder).monitors

    def none(self: Fitter, *_: Any) -> Any:
        raise FitError("no attack worked")

    monkeypatch.setattr(Fitter, "repair", none)
    with pytest.raises(FitError, match="no attack worked"):
        workflow.fit(a_job(tmp_path / "other", preset="official", **FEW, **files))
