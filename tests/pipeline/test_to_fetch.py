"""How large what a job would fetch is, by the listings of a Hub that asks no network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, errors

from care.data.at_hand import needs
from care.data.registry import REGISTRY
from care.evaluation.config import JudgingSpec
from care.models.spec import ModelSpec
from care.pipeline.config import RepairJob
from care.pipeline.doctor import findings
from care.pipeline.hub_listing import Hub
from care.pipeline.to_fetch import (
    Fetch,
    in_words,
    lack_of_space,
    model_fetch,
    suite_fetch,
    to_fetch,
    total_said,
)
from kit.hub import FakeHub, hub, refused  # noqa: F401
from kit.suite_copies import own_cache  # noqa: F401

pytestmark = pytest.mark.usefixtures("own_cache")

MODEL = {
    "config.json": 2_000_000,
    "model.safetensors.index.json": 3_000_000,
    "model-00001-of-00002.safetensors": 9_000_000_000,
    "model-00002-of-00002.safetensors": 7_000_000_000,
    "pytorch_model.bin": 16_000_000_000,
    "original/consolidated.00.pth": 16_000_000_000,
    "README.md": 5_000_000,
}
LOADED = 16_005_000_000


def job(**options: Any) -> RepairJob:
    return RepairJob(**{"model": ModelSpec("some/model"), **options})


def fetches(given: RepairJob, *names: str) -> list[Fetch]:
    return to_fetch(given, map(needs, names))


def test_a_model_is_as_large_as_what_would_be_loaded(hub: FakeHub) -> None:
    hub.listed["some/model"] = MODEL
    fetch = model_fetch(ModelSpec("some/model", revision="v1"), Hub())
    assert fetch.size == LOADED and fetch.said == "16.0 GB to fetch"
    assert hub.asked == [("some/model", "v1", "model")] and hub.heads == 1


def test_files_that_are_here_arent_counted(hub: FakeHub) -> None:
    hub.listed["some/model"] = MODEL
    commit = hub.keep("some/model", "config.json", "model-00001-of-00002.safetensors")
    assert model_fetch(ModelSpec("some/model"), Hub()).size == 7_003_000_000
    blobs = commit.parents[1] / "blobs"
    blobs.mkdir()  # the same content, under another commit
    (blobs / "content of model-00002-of-00002.safetensors").touch()
    assert model_fetch(ModelSpec("some/model"), Hub()).size == 3_000_000
    (blobs / "blob of model.safetensors.index.json").touch()
    assert model_fetch(ModelSpec("some/model"), Hub()).size == 0
    hub.asked.clear()
    hub.keep("whole/model", "config.json", "model.safetensors")
    assert model_fetch(ModelSpec("whole/model"), Hub()).size == 0
    assert model_fetch(ModelSpec(str(commit)), Hub()).size == 0
    assert not hub.asked


def test_a_suite_is_as_large_as_the_files_on_its_card(hub: FakeHub) -> None:
    card = REGISTRY["vlguard-safe"].source
    sizes: dict[str, int | None] = {"test.zip": 900_000_000, "test.json": 600_000}
    hub.listed[card.at] = {**sizes, "train.zip": 10**10}
    asked = Hub()
    two = [suite_fetch(needs(name), asked) for name in ("vlguard-safe", "vlguard-unsafe")]
    assert [fetch.size for fetch in two] == [900_600_000] * 2
    assert hub.asked == [(card.at, card.revision, "dataset")]
    assert total_said(two) == "901 MB of suites"  # what both need is fetched once
    tables = REGISTRY["mme"].options["tables"]
    source = REGISTRY["mme"].source
    hub.listed[source.at] = dict.fromkeys(tables, 250_000_000)
    assert suite_fetch(needs("mme"), Hub()).size == 10**9
    hub.keep(source.at, *tables[1:], kind="dataset", revision=source.revision)
    assert suite_fetch(needs("mme"), Hub()).size == 250_000_000


def test_what_a_suite_has_isnt_asked_for(hub: FakeHub) -> None:
    source = REGISTRY["jbb-benign"].source
    folder = hub.keep(source.at, kind="dataset", revision=source.revision) / "data"
    folder.mkdir(parents=True)
    (folder / "benign-behaviors.csv").write_text("Index,Goal,Category\n1,Bake a cake,Baking\n")
    assert needs("jbb-benign").at_hand and not needs("jbb-benign").missing
    assert suite_fetch(needs("jbb-benign"), Hub()).size == 0
    assert suite_fetch(needs("text-jailbreak"), Hub()).size == 0
    assert not hub.asked and not hub.heads


def test_other_servers_arent_asked(hub: FakeHub) -> None:
    github = suite_fetch(needs("figstep"), Hub())
    assert github.size is None
    assert github.said == "size not known: it comes from GitHub, which isn't asked"
    assert "opencompass.openxlab.space" in suite_fetch(needs("mmbench"), Hub()).said
    assert not hub.asked and not hub.heads


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refused(errors.GatedRepoError, 403), "wants the terms of some/model to be accepted"),
        (refused(errors.RepositoryNotFoundError, 401), "has no some/model, or shows it only"),
        (refused(errors.RevisionNotFoundError, 404), "has no revision v1 of some/model"),
        (refused(errors.HfHubHTTPError, 429), "refuses with status 429"),
        ({"README.md": 1}, "lists no weights to load"),
        ({"adapter_config.json": 1}, "lists an adapter"),
        ({"model.safetensors": None}, "lists no size of model.safetensors"),
    ],
)
def test_a_refusal_is_told_and_the_rest_asked(answer: Any, said: str, hub: FakeHub) -> None:
    hub.listed |= {"some/model": answer, "cais/HarmBench-Llama-2-13b-cls": MODEL}
    model, judge, _ = fetches(
        job(
            model=ModelSpec("some/model", revision="v1"),
            judging=JudgingSpec(("harmbench", "rules")),
        )
    )
    assert model.size is None and said in model.said and judge.size == LOADED
    assert total_said([model, judge]) == "16.0 GB of judges (1 size not known)"


def test_a_hub_that_stops_answering_is_left_alone(hub: FakeHub) -> None:
    hub.listed["some/model"] = TimeoutError("timed out")
    found = fetches(job(judging=JudgingSpec(("harmbench",))), "or-bench-hard")
    assert len(hub.asked) == 1
    assert {fetch.untold for fetch in found} == {f"{constants.ENDPOINT} doesn't answer (timed out)"}
    assert total_said(found) == "3 sizes not known"


def test_a_silent_or_switched_off_hub_is_asked_for_nothing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.silent = True
    assert "doesn't answer (timed out)" in fetches(job(), "or-bench-hard")[-1].said
    assert hub.heads == 1 and not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetches(job())[0].untold == "the Hub is switched off by HF_HUB_OFFLINE"
    assert hub.heads == 1 and not hub.asked


def test_a_name_that_none_can_have_is_told(hub: FakeHub) -> None:
    given = job(model=ModelSpec("/models/none"))
    told = {each.about: each for each in findings(given)}["model /models/none"]
    assert "neither a folder nor a name" in told.found and told.bytes is None
    assert "correct the name" in told.to_do and not hub.asked


def test_the_embedded_model_is_as_large_as_its_wheels(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert total_said(fetches(RepairJob())) == "183 MB of model"
    monkeypatch.setenv("CARE_WHEELS", str(tmp_path))
    assert total_said(fetches(RepairJob())) == "nothing"


def test_the_doctor_says_what_wouldnt_fit(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.listed["some/model"] = MODEL
    given = job(attacks=("figstep",), benign=("xstest",))
    told = {each.about: each for each in findings(given)}
    assert told["model some/model"].found == "not fetched; 16.0 GB to fetch"
    assert told["model some/model"].bytes == told["to fetch"].bytes == LOADED
    assert told["to fetch"].found == "16.0 GB of model (2 sizes not known)"
    assert told["--attacks figstep"].bytes is None and told["python"].bytes == 0
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, LOADED))
    assert not {each.about: each for each in findings(given)}["to fetch"].to_do
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, LOADED - 1))
    lack = {each.about: each for each in findings(given)}["to fetch"].to_do
    assert lack.startswith("It doesn't fit: 16.0 GB") and lack.endswith("HF_HUB_CACHE.")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 0))
    assert "CARE_CACHE" in lack_of_space(fetches(RepairJob()))


def test_bytes_in_words() -> None:
    sizes = {0: "0.1 MB", 10: "0.1 MB", 4_240_000: "4.2 MB", 412_400_000: "412 MB"}
    assert {size: in_words(size) for size in sizes} == sizes
    assert in_words(16_640_000_000) == "16.6 GB"
