"""The main job on a model that reads text alone: pictures are left out, and it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from care.defenses.repair.repair import Repair
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.pipeline import workflow as pipeline
from care.pipeline.splits import pairs_of, suites_of, without_pictures
from kit import tiny
from kit.jobs import a_job, files, tiny_parts  # noqa: F401


@pytest.fixture(autouse=True)
def text_only(tiny_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = VLM(tiny.tiny_llama(), tiny.tiny_tokenizer(), "tiny-llama")
    monkeypatch.setattr(ModelSpec, "load", lambda self: vlm)


@pytest.mark.slow
def test_a_job_repairs_the_text_half(files: dict[str, Path], tmp_path: Path) -> None:
    options = {"test_length": 8, "batch_size": 8, "max_new_tokens": 4, **files}
    with pytest.warns(UserWarning, match="reads text alone: requests with pictures are left out"):
        tree = pipeline.repair(a_job(tmp_path / "run", **options))
    assert tree["manifest"]["pictures_left_out"] == ["attacks", "benign"]
    assert tree["outcomes"]["attacks"]["before"]["harmful"] > 0
    kept = Repair.load(tmp_path / "run" / "repair")
    assert kept.monitors and {channel.modality for channel in kept.channels} == {"text"}
    again = pipeline.repair(a_job(tmp_path / "run", resume=True, **options))
    assert again["suites"] == tree["suites"]


def test_of_the_small_world_what_has_no_pictures_is_asked(tmp_path: Path) -> None:
    job = a_job(tmp_path / "run", model=ModelSpec("text"), test_length=4)
    kept = [without_pictures(suite) for suite in suites_of(job, "test")]
    names = {suite.name for suite in kept if suite is not None}
    assert names == {"direct", "text-jailbreak", "benign", "lookalike", "benign-wrapped"}
    assert {pair.kind for pair in pairs_of(job, 4)} > {
        pair.kind for pair in pairs_of(job, 4, pictured=False)
    }
    for pair in pairs_of(job, 4, pictured=False):
        assert not pair.attack.images and not pair.benign.images
