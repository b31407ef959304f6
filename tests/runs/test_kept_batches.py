"""Batches of a stage that was killed: at most one is asked again, and the numbers are the same."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from care.data.example import Example
from care.data.minimal_pairs import Pair
from care.defenses import material
from care.defenses.material import gather
from care.defenses.repair.repair import Repair
from care.diagnosis.causal_mediation import EffectsConfig, site_effects
from care.diagnosis.channel_scan import refused_under
from care.diagnosis.neurons.interventions import between_pairs
from care.diagnosis.neurons.search import NeuronConfig, find_neurons
from care.errors import StorageError
from care.pipeline import workflow as pipeline
from care.runs.kept_batches import FOLDER, KeptBatches, texts_from, texts_to
from care.runs.run import Run
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree
from kit import tiny
from kit.jobs import MadeUpJudge, a_job, files, parts, tiny_parts  # noqa: F401
from kit.repairs import made


class Counting:
    """Counts the batches that are asked, and kills the process in some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.dies_after = 0, 10**9
        over = KeptBatches.over

        def counted(kept: KeptBatches, work: Any, *rest: Any) -> Any:
            def counts(chunk: list[int]) -> list[Any]:
                if self.asked == self.dies_after:
                    raise KeyboardInterrupt
                self.asked += 1
                return work(chunk)

            return over(kept, counts, *rest)

        monkeypatch.setattr(KeptBatches, "over", counted)


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run") as run:
        yield run


@pytest.fixture
def counting(monkeypatch):
    return Counting(monkeypatch)


def gathered(vlm: Any, kept: KeptBatches | None) -> Any:
    attacks = [Example(f"a{i}", f"bad {i}", goal=f"bad {i}", kind="malicious") for i in range(20)]
    benign = [Example(f"b{i}", f"good {i}", goal=f"good {i}") for i in range(10)]
    sites = vlm.anatomy.sites("ffn_out")[:2]
    return gather(vlm, attacks, benign, batch_size=4, max_new_tokens=3, sites=sites, kept=kept)


def stages() -> dict[str, Any]:
    """Functions from a model and kept batches to what a stage finds, as comparable values."""
    asked = [Example(f"e{i}", f"do thing {i}" + "?" * i, goal=f"g{i}") for i in range(14)]
    repairs = [None, Repair((made(scopes=("decision",)),)), Repair((made(scopes=("all",)),))]
    pairs = [Pair(a, b, "k") for a, b in zip(asked[:6], asked[6:12], strict=True)]

    def found_by_gather(vlm: Any, kept: Any) -> Any:
        found = gathered(vlm, kept)
        rows = {str(s): [part.tolist() for part in p] for s, p in found.decisions.items()}
        return material.material_to(found), rows

    def effects(vlm: Any, kept: Any) -> Any:
        config, sites = EffectsConfig(batch_size=2), vlm.anatomy.sites("ffn_out")
        return to_tree(site_effects(vlm, pairs, sites, config=config, kept=kept))

    def refusals(vlm: Any, kept: Any) -> Any:
        return refused_under(vlm, asked, repairs, 4, kept=kept).tolist()

    def neurons(vlm: Any, kept: Any) -> Any:
        questions = [between_pairs(pairs[part::2]) for part in (0, 1)]
        config = NeuronConfig(
            verified=8, described=0, sampling=SamplingSpec(resamples=50), batch_size=1
        )
        found = find_neurons(vlm, questions[0], verify=questions[1], config=config, kept=kept)
        return to_tree(found)

    return {
        "neurons": neurons,
        "material": found_by_gather,
        "effects": effects,
        "channels": refusals,
    }


@pytest.mark.parametrize("stage", stages())
def test_a_stage_that_is_killed_in_every_batch_asks_none_twice(run, counting, stage):
    vlm, find = tiny.tiny_vlm(), stages()[stage]
    whole = find(vlm, None)
    kept = KeptBatches(run, stage)
    kills = 0
    while True:
        before, counting.dies_after = counting.asked, counting.asked + 1
        try:
            found = find(vlm, kept)
            break
        except KeyboardInterrupt:
            kills += 1
            assert counting.asked == before + 1
    assert kills >= 2 and found == whole
    asked = counting.asked
    assert find(vlm, kept) == whole and counting.asked == asked
    (first, *_) = sorted((run.path / FOLDER / stage).iterdir())
    first.write_bytes(b"damaged")
    counting.dies_after = 10**9
    assert find(vlm, kept) == whole and counting.asked == asked + 1
    kept.forget()
    assert not (run.path / FOLDER / stage).exists()


def test_other_examples_or_settings_are_asked_anew(vlm, run, counting):
    asked = [Example(f"e{i}", f"do {i}") for i in range(6)]
    kept = KeptBatches(run, "channels")
    one, two = (Repair((made(scopes=("decision",), seed=seed),)) for seed in (0, 1))
    refused_under(vlm, asked, [one], 3, kept=kept)
    assert counting.asked == 2
    for repairs, examples in (([two], asked), ([one], asked[::-1]), ([one, two], asked)):
        before = counting.asked
        found = refused_under(vlm, examples, repairs, 3, kept=kept)
        assert (found == refused_under(vlm, examples, repairs, 3)).all()
        assert counting.asked > before or examples is not asked
    other = [Example(f"e{i}", f"do {i}", system="Be brief.") for i in range(6)]
    before = counting.asked
    refused_under(vlm, other, [one], 3, kept=kept)
    assert counting.asked == before + 2


def test_texts_survive():
    texts = ["", "a\n\0b", "ünï", "\ud83d", "x" * 999]
    assert texts_from(texts_to(texts)) == texts


def test_a_folder_that_is_gone_is_noticed(run, counting):
    shutil.rmtree(run.path)
    with pytest.raises(StorageError, match="deleted"):
        gathered(tiny.tiny_vlm(), KeptBatches(run, "material"))
    assert not run.path.exists()


@pytest.mark.slow
def test_a_job_killed_in_its_batches_asks_each_once(files, tmp_path, counting):
    """The stages of a whole job that keep batches, killed at places drawn at random."""
    options = {"test_length": 8, "batch_size": 8, "max_new_tokens": 4, **files}
    whole = pipeline.repair(a_job(tmp_path / "whole", **options))
    batches, counting.asked = counting.asked, 0
    assert batches > 10
    for place in np.sort(np.random.default_rng(0).choice(batches, 4, replace=False)):
        counting.dies_after = int(place)
        with pytest.raises(KeyboardInterrupt):
            pipeline.repair(a_job(tmp_path / "killed", resume=True, **options))
    counting.dies_after = 10**9
    again = pipeline.repair(a_job(tmp_path / "killed", resume=True, **options))
    assert counting.asked == batches  # a batch that was killed counts when it is done
    assert parts(again) == parts(whole)
    names = [
        s["name"] for s in json.loads((tmp_path / "killed/manifest.json").read_text())["stages"]
    ]
    assert {"material", "effects", "channels"} <= set(names)
    assert not list((tmp_path / "killed" / FOLDER).iterdir())
