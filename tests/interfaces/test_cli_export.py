"""`care export` of repairs: what is written, what has to be left out first, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care.defenses import artefact
from care.defenses.artefact import save
from care.defenses.repair.repair import Repair
from care.interfaces.cli import app as cli
from care.models.sites import Site
from care.models.vlm import VLM
from kit import tiny
from kit.artefacts import made
from kit.evaluations import FakeDefense
from kit.jobs import write_requests
from kit.merging import linear_repair

REQUESTS = ["--suite", "bad.jsonl", "--utility", "good.jsonl", "--max-new-tokens", "3"]


@pytest.fixture
def world(vlm, tmp_path, monkeypatch):
    """A model and its repairs in folders: linear ones, a gated one, one of a whole layer's output;
    and two suites."""
    vlm.model.save_pretrained(tmp_path / "tiny")
    vlm.processor.save_pretrained(tmp_path / "tiny")
    save(linear_repair(vlm, Site(1, "ffn_out"), Site(2, "mhsa_out")), tmp_path / "plain")
    save(linear_repair(vlm, Site(1, "ffn_out"), centred=True), tmp_path / "centred")
    save(linear_repair(vlm, Site(1, "layer_out")), tmp_path / "layer")
    save(made(), tmp_path / "gated")
    write_requests(tmp_path)
    monkeypatch.chdir(tmp_path)


def export(*arguments):
    return cli.main(["export", *arguments, "--model", "tiny", *REQUESTS])


def test_a_linear_repair_is_merged_whole(world, vlm, capsys):
    assert export("plain", "--format", "merged", "--out", "out") == 0
    said = capsys.readouterr().out
    assert "layers.1.mlp.down_proj: 3 directions\n" in said and said.endswith("out\n")
    examples = tiny.mixed_examples(3)
    with Repair.load("plain").applied(vlm):
        expected = vlm.generate(examples, max_new_tokens=6)
    assert VLM.from_pretrained("out").generate(examples, max_new_tokens=6) == expected
    told = json.loads(Path("out/care_export.json").read_text())
    assert told["digest"] == Repair.load("plain").digest() and told["left_out"] == []
    assert told["gap"] < 1e-4 and "probe" not in told
    assert export("plain", "--format", "merged", "--out", "out") == 2
    assert "out is there already; name another folder by --out." in capsys.readouterr().err


def test_what_has_to_be_left_out_is_named_and_measured(world, capsys):
    assert export("gated", "--format", "lora", "--out", "out") == 2
    assert "leave that out with --drop gates,scopes," in capsys.readouterr().err
    dropped = ["--drop", "gates,scopes", "--drop", "centres"]
    assert export("gated", "--format", "lora", "--out", "out", *dropped) == 2
    assert "with --drop gates,scopes,centres,sites," in capsys.readouterr().err
    assert not Path("out").exists()
    assert export("gated", "--format", "lora", "--out", "out", *dropped, "--drop", "sites") == 0
    assert "these weights: ASR" in capsys.readouterr().out
    told = json.loads(Path("out/care_export.json").read_text())
    assert [rates["name"] for rates in told["probe"]] == [
        "bare model", "the repair", "these weights"]  # fmt: skip
    assert [one["name"].split(".")[-1] for one in told["maps"]] == ["down_proj"]
    assert Path("out/adapter_model.safetensors").exists()
    assert "gates: the edits act on every request" in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["centred", "--format", "lora"], "An adapter has no place for a centre"),
        (["layer", "--format", "merged"], "Nothing of this repair can be folded into weights of"),
        (["gated", "--format", "merged", "--drop", "gate"], "--drop takes some of monitors, gates"),
        (["plain", "--format", "merged", "--images"], "takes no option of a run, but got images"),
    ],
)
def test_what_cannot_be_exported(world, capsys, arguments, said):
    assert export(*arguments, "--out", "out") == 2
    assert said in capsys.readouterr().err and not Path("out").exists()


def test_runs_and_repairs_are_told_apart(world, capsys):
    assert cli.main(["export", "plain", "--format", "inspect"]) == 2
    assert "plain holds a repair, and inspect is a format of runs" in capsys.readouterr().err
    assert cli.main(["export", "plain", "--format", "inspect", "--drop", "gates"]) == 2
    assert "takes no option of a repair, but got drop" in capsys.readouterr().err
    for folder, told in (
        ("run", "pass the folder of a repair"),
        ("job", "pass its repair job/rep"),
    ):
        Path(folder).mkdir()
        Path(folder, "manifest.json").write_text("{}")
        if folder == "job":
            save(made(), Path("job/repair"))
        assert export(folder, "--format", "merged") == 2
        assert told in capsys.readouterr().err


def test_only_repairs_are_exported(world, capsys, monkeypatch):
    other = FakeDefense("neurons")
    monkeypatch.setattr("care.pipeline.export.load_defense", lambda path: other)
    assert export("plain", "--format", "merged", "--out", "out") == 2
    said = "holds the defense neurons, and only repairs are exported as weights"
    assert said in capsys.readouterr().err


def test_it_is_pushed_with_its_card(world, capsys, monkeypatch):
    pushed = {}

    def upload(folder, repo_id):
        pushed[repo_id] = sorted(path.name for path in folder.iterdir())
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(artefact, "upload", upload)
    asked = ["plain", "--format", "lora", "--out", "out", "--push", "me/repaired"]
    assert export(*asked) == 0
    assert capsys.readouterr().out.endswith("https://hub/me/repaired\n")
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert pushed["me/repaired"] == ["README.md", *adapter, "care_export.json"]
