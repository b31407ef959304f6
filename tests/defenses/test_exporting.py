"""Folders of exported repairs: transformers and PEFT load them, and the card says what they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from care.defenses.artefact import upload
from care.defenses.base import Defense
from care.defenses.export_facts import ExportFacts, ProbeRates, export_card
from care.defenses.exporting import folded_sites, write_export, write_lora
from care.defenses.folded_weights import FoldedWeights, folds
from care.defenses.linear_parts import affine_maps
from care.errors import StorageError, UsageError
from care.models.sites import Site
from care.models.vlm import VLM
from care.typed import from_tree, to_tree
from kit import tiny
from kit.merging import linear_repair, logits_under

SITES = Site(1, "ffn_out"), Site(1, "ffn_neurons"), Site(2, "mhsa_out")
EXAMPLES = tiny.mixed_examples(3)


def facts(made, **more):
    told = {
        "format": "merged",
        "model": {"name": "owner/base", "revision": None, "class": "Llava"},
        "repair": "care",
        "digest": "abc",
        "maps": folded_sites(made),
        "left_out": (),
        "gap": 1e-6,
    }
    return ExportFacts(**told | more)


def test_a_merged_folder_is_a_model(vlm, tmp_path):
    repair = linear_repair(vlm, *SITES, centred=True)
    made = folds(vlm, affine_maps(repair))
    write_export(vlm, made, facts(made), tmp_path / "out")
    again = VLM.from_pretrained(str(tmp_path / "out"))
    for config, biases in ((vlm.model.config, False), (again.model.config, True)):
        text = config.text_config
        assert (text.mlp_bias, text.attention_bias) == (biases, biases)
    expected, said = logits_under(vlm, repair, EXAMPLES)
    found, answers = logits_under(again, Defense(), EXAMPLES)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert answers == said
    told = json.loads((tmp_path / "out/care_export.json").read_text())
    assert from_tree(ExportFacts, told) == facts(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_adapter_is_loaded_by_peft(vlm, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT isn't installed: pip install 'care-vlm[peft]'")
    repair = linear_repair(vlm, *SITES)
    made = folds(vlm, affine_maps(repair))
    write_export(vlm, made, facts(made, format="lora"), tmp_path / "out")
    base = tiny.tiny_vlm()
    adapted = peft.PeftModel.from_pretrained(base.model, str(tmp_path / "out")).eval()
    expected, _ = logits_under(vlm, repair, EXAMPLES)
    weights, _ = logits_under(vlm, FoldedWeights(made), EXAMPLES)
    batch = vlm.batch(EXAMPLES, ["I'm sorry."] * 3)
    real = batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        found = adapted(**batch.inputs, use_cache=False).logits[real]
        with adapted.disable_adapter():
            bare = adapted(**batch.inputs, use_cache=False).logits[real]
    torch.testing.assert_close(found, weights, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bare, expected, atol=1e-2)


def test_an_adapter_has_no_place_for_a_centre(vlm, tmp_path):
    made = folds(vlm, affine_maps(linear_repair(vlm, SITES[0], centred=True)))
    with pytest.raises(UsageError, match="An adapter has no place for a centre, which the edit at"):
        write_lora(vlm, made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_an_export_that_fails(vlm, tmp_path):
    made = folds(vlm, affine_maps(linear_repair(vlm, SITES[0])))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(StorageError, match="Could not write"):
        write_export(vlm, made, facts(made, format="lora"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/mine").read_text() == "kept"


def test_what_the_hub_refuses_is_one_sentence(tmp_path, monkeypatch):
    def refused(self, repo_id, **options):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refused)
    with pytest.raises(StorageError, match=r"as me/it \(no route to host\); check the name"):
        upload(tmp_path, "me/it")


def test_the_card_says_what_is_missing_and_what_that_costs(vlm):
    made = folds(vlm, affine_maps(linear_repair(vlm, SITES[0])))
    whole = export_card(facts(made))
    said = ["base_model: owner/base", "base_model_relation: finetune", "Nothing: its edits"]
    said += ["SHA-256 `abc`", "layers.1.mlp.down_proj | 3 | no", "Not evaluated yet"]
    assert [one for one in said if one not in whole] == []
    asrs = {"bare model": 0.7, "the repair": None, "these weights": 0.4}
    rates = [ProbeRates(name=name, asr=asr, harmless=1.0) for name, asr in asrs.items()]
    parts = facts(made, format="lora", left_out=("gates", "monitors"), probe=tuple(rates))
    card = export_card(parts)
    said = ["library_name: peft", "adapter of PEFT", "- gates: the edits act on every request"]
    said += ["no certificate holds", "| bare model | 0.70 | 1.00 |", "not judged"]
    assert [one for one in [*said, "aren't those of this model"] if one not in card] == []
    suite = {"name": "pgd", "metric": "ASR", "n": 60, "before": {"rate": 1.0}}
    figures = {"suites": [suite | {"after": {"rate": 0.1}}]}
    assert "| pgd (ASR) | 60 | 1.00 | 0.10 |" in export_card(replace(facts(made), figures=figures))
    assert from_tree(ExportFacts, to_tree(parts)) == parts
