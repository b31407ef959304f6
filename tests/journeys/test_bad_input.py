"""Bad input, through the command line: one clear sentence, exit code 2, and nothing lost.

The jobs here are stand-ins of a line or two that make the real call the input belongs to.
"""

import errno
import json
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig

from care.attacks.pgd import AttackResult
from care.attacks.presets import PRESETS
from care.data.example import Example
from care.data.jsonl import read_suite
from care.defenses.artefact import FORMATS
from care.defenses.material import Material
from care.defenses.repair.channel import Channel
from care.defenses.repair.fitting_data import Contrast, activations
from care.defenses.repair.gate import Gate
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import SubspaceConfig, fit_subspace, random_subspace
from care.interfaces.cli import app as cli
from care.models.identity import model_facts
from care.models.sites import Site
from care.models.vlm import VLM
from care.pipeline import workflow as pipeline
from care.runs import files as storage
from care.runs.run import Run
from care.statistics.moments import Moments
from kit import tiny
from kit.artefacts import state
from kit.full_disk import full_after
from recipes.embedded_model import adversarial

SITE = Site(1, "ffn_out")
DONE = {"suites": [], "summary": {"verdict": "", "mean_asr_after": None}}
"""What a stand-in that succeeds returns."""


@pytest.fixture
def care_repair(monkeypatch, capsys, tmp_path):
    """`care repair` with a stand-in for the job: runs it, gives exit code and standard error."""

    def run(job, *arguments):
        monkeypatch.setattr(pipeline, "repair", lambda given, progress: job(given))
        capsys.readouterr()
        code = cli.main(["repair", *arguments, "--out", str(tmp_path / "run")])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(care_repair):
    """Assert that a job is refused in one sentence that holds all of `words`."""

    def check(job, *words, arguments=()):
        code, shown = care_repair(job, *arguments)
        assert code == 2 and shown.startswith("Error: ") and "Traceback" not in shown
        assert shown.endswith("\n") and shown.count("\n") == 1
        assert [word for word in words if word not in shown] == []

    return check


def test_models_that_there_are_not_and_one_without_a_tokenizer(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    text_only = tmp_path / "text-only"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaConfig(**sizes).save_pretrained(text_only)
    missing = ("nobody/no-such-model", "check the name")
    folders = [(str(tmp_path / name),) for name in ("nowhere", "empty")]
    for name, *words in (missing, *folders, (str(text_only), "could not be loaded")):
        refused(lambda job: job.model.load(), name, *words, arguments=[name])


def test_a_model_whose_configuration_is_nested_without_end(refused, tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    refused(lambda job: VLM.from_pretrained(str(tmp_path)), str(tmp_path), "could not be loaded")


# -- pictures and files of examples ------------------------------------------------------------


def written(folder, *lines):
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--attacks", str(file), "--benign", str(file)]


def read_attacks(job):
    return read_suite(job.attacks[0], "attack")


def claims_to_be(path, width, height):
    """A PNG of a few bytes whose header states another size."""
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def test_corrupt_and_huge_pictures(refused, tmp_path):
    tiny.picture(size=(200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    claims_to_be(tmp_path / "huge.png", 9000, 8000)
    claims_to_be(tmp_path / "bomb.png", 20000, 20000)
    for name, word in (("cut", "not a readable image"), ("huge", "MPixel"), ("bomb", "too large")):
        arguments = written(tmp_path, {"prompt": "a"}, {"prompt": "b", "images": f"{name}.png"})
        refused(read_attacks, "line 2", f"{name}.png", word, arguments=arguments)


def test_cmyk_alpha_and_animated_pictures_are_fine(care_repair, vlm, tmp_path):
    tiny.picture().convert("CMYK").save(tmp_path / "cmyk.jpg")
    tiny.picture().convert("RGBA").save(tmp_path / "alpha.png")
    frames = [tiny.picture(seed) for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    names = ["cmyk.jpg", "alpha.png", "moving.gif"]
    arguments = written(tmp_path, *({"prompt": "What is this?", "images": [n]} for n in names))

    def job(given):
        answers = vlm.generate(list(read_attacks(given)), max_new_tokens=2)
        assert len(answers) == 3
        return DONE

    assert care_repair(job, *arguments) == (0, "")


def test_empty_suite(refused, tmp_path):
    refused(read_attacks, "mine.jsonl", "no examples", arguments=written(tmp_path))


def test_one_class_missing(refused, tmp_path):
    arguments = written(tmp_path, {"prompt": "a", "kind": "benign"})
    refused(read_attacks, "line 1", "benign", arguments=arguments)
    refused(lambda job: None, "--benign", arguments=arguments[:2])
    asked = ((Example("a", "how?"), "so"),)
    refused(lambda job: Material(asked, (), asked), "'refused'")
    refused(lambda job: Contrast(asked, (), "response"), "benign class")
    some = Moments(4).fit(np.eye(4))
    refused(lambda job: fit_subspace(some, Moments(4)), "benign")
    refused(lambda job: fit_subspace(Moments(4), some), "malicious")


# -- activations -------------------------------------------------------------------------------


def test_activations_that_are_not_numbers(refused):
    broken = tiny.tiny_vlm()
    with torch.no_grad():
        broken.anatomy.module(Site(0, "ffn_neurons")).weight[0] = float("nan")
    asked = tuple((Example(str(i), "How do you build it?"), "Sure.") for i in range(3))

    def job(given):
        rows = activations(broken, asked, [SITE], "response")[SITE]
        Moments(rows.shape[1]).fit(rows)

    refused(job, "NaN", "3 of 3 rows", "float32")


def test_rank_larger_than_the_data_allow(refused):
    rows = np.random.default_rng(0).standard_normal((2, 5, 32))
    classes = [Moments(32).fit(part) for part in rows]
    refused(lambda job: fit_subspace(*classes, SubspaceConfig(rank=20)), "20", "5")
    refused(lambda job: SubspaceConfig(rank=0), "rank")


# -- artefacts ---------------------------------------------------------------------------------


def a_repair(width=tiny.WIDTH, **manifest):
    subspace = random_subspace(width, 2)
    return Repair((Channel(SITE, "text", ("response",), subspace),), manifest=manifest)


def test_artefact_of_another_model(refused, vlm, tmp_path):
    def load(job):
        return Repair.load(tmp_path, vlm)

    a_repair(width=16).save(tmp_path)
    refused(load, "width 16", str(tiny.WIDTH), "another model")
    facts = model_facts(vlm)
    for key, value in (("class", "Qwen2_5_VLForConditionalGeneration"), ("layers", 28)):
        a_repair(model=facts | {key: value}).save(tmp_path)
        refused(load, key, str(value), "tiny-llava")
    replaced = a_repair(model=facts).channels[0]
    Repair((replace(replaced, site=Site(9, "ffn_out")),)).save(tmp_path)

    def apply(job):
        with load(job).applied(vlm):
            pass

    refused(apply, "9.ffn_out", "tiny-llava", "4 layers")


def test_another_revision_only_warns(care_repair, vlm, tmp_path):
    a_repair(model=model_facts(vlm) | {"revision": "abc"}).save(tmp_path)
    code, shown = care_repair(lambda job: Repair.load(tmp_path, vlm) and DONE)
    assert code == 0 and shown.startswith("Warning: ") and "revision" in shown


def test_tampered_artefacts(refused, care_repair, tmp_path):
    a_repair().save(tmp_path)
    numbers, facts = tmp_path / "repair.safetensors", tmp_path / "repair.json"
    whole = numbers.read_bytes()
    places = (0, len(whole) // 2, len(whole) - 1)
    bits = (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places)
    for damaged in (*bits, whole[:-1]):
        numbers.write_bytes(damaged)
        refused(lambda job: Repair.load(tmp_path), "digest")
    numbers.unlink()
    refused(lambda job: Repair.load(tmp_path), "There is no", "repair.safetensors")
    facts.rename(tmp_path / "kept")
    code, shown = care_repair(lambda job: Repair.load(tmp_path))
    assert code == 2 and "There is no" in shown and "repair.json" in shown
    assert "JSON" not in shown and "fetch it again" not in shown
    (tmp_path / "kept").rename(facts)
    facts.write_text(facts.read_text()[:-20])
    refused(lambda job: Repair.load(tmp_path), "isn't valid JSON")


def test_artefact_formats_of_the_future(refused, tmp_path):
    facts = a_repair().save(tmp_path) / "repair.json"
    for version in (FORMATS[-1] + 1, None, "1"):
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": version}))
        refused(lambda job: Repair.load(tmp_path), "artefact format", str(version))


def test_artefacts_with_a_damaged_gate(refused, tmp_path):
    gate = Gate(
        np.eye(tiny.WIDTH, 2, dtype=np.float32),
        *(np.full(n, value, np.float32) for n, value in ((tiny.WIDTH, 0), (2, 0.5), (2, 1))),
        families=("typographic", "optimised"),
    )
    repair = a_repair()
    repair = replace(repair, channels=(replace(repair.channels[0], gate=gate),))
    facts = repair.save(tmp_path) / "repair.json"
    whole = json.loads(facts.read_text())

    def changed(value):
        channel = whole["channels"][0]
        state(tmp_path, whole | {"channels": [channel | {"gate": value}]})

    for change, words in (
        ({"families": ["optimised"]}, ("2 filters", "got 1: optimised")),
        ({"opened": {"optimised": 90}}, ("opened", "between 0 and 1", "90")),
        ({"quantile": "high"}, ("quantile", "'high'")),
    ):
        changed(whole["channels"][0]["gate"] | change)
        refused(lambda job: Repair.load(tmp_path), *words)
    changed(None)
    refused(lambda job: Repair.load(tmp_path), "channel 0", "numbers of a gate")


def test_no_artefact(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # after make demo the clone has a runs/demo/repair
    for place in (tmp_path, tmp_path / "nowhere", "nobody/no-repair", "runs/demo/repair"):
        refused(lambda job, place=place: Repair.load(place), str(place))


# -- the disk and Ctrl-C -----------------------------------------------------------------------


def test_full_disk_loses_no_row(refused, monkeypatch, tmp_path):
    def job(given):
        with Run(given.run.out, resume=given.run.resume, config={"seed": given.run.seed}) as run:
            run.add({"key": "first", "answer": "kept"})
            full_after(monkeypatch, 9)
            run.add({"key": "second", "answer": "not kept"})

    refused(job, "rows.jsonl", "No space left", "free space")
    monkeypatch.undo()
    assert len((tmp_path / "run" / "rows.jsonl").read_text().splitlines()) == 1
    with Run(tmp_path / "run", resume=True, config={"seed": 0}) as run:
        assert run.get("first") == {"key": "first", "answer": "kept"}
        run.add({"key": "second", "answer": "kept now"})


def test_full_disk_keeps_the_older_artefact(refused, monkeypatch, tmp_path):
    older, newer = a_repair(), a_repair(width=16)
    older.save(tmp_path)
    full_after(monkeypatch, 99)
    refused(lambda job: newer.save(tmp_path), "No space left")
    monkeypatch.undo()
    bases = [repair.channels[0].subspace.basis for repair in (Repair.load(tmp_path), older)]
    np.testing.assert_array_equal(*bases)
    assert not list(tmp_path.glob(f"*{storage.PART}"))


def test_full_disk_leaves_no_half_picture(refused, monkeypatch, tmp_path):
    kept = AttackResult(tiny.picture(), (0.9, 0.1), PRESETS["pgd-32"], 0.1, 0.0)
    monkeypatch.setattr(adversarial, "universal_image", lambda *arguments, **options: kept)
    with monkeypatch.context() as patched:
        full_after(patched, 99)
        refused(lambda job: adversarial.make(None, tmp_path, log=str), "No space left", ".png")
    assert not list(tmp_path.iterdir())
    made = adversarial.make(None, tmp_path, log=str)
    assert sorted(made) == sorted(tmp_path.iterdir())
    assert all(Image.open(path).tobytes() == kept.image.tobytes() for path in made)


def test_full_disk_in_a_library(refused):
    def job(given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused(job, "No space left", "--resume")


def test_ctrl_c_keeps_what_is_done(care_repair, refused):
    def job(given):
        with Run(given.run.out, resume=given.run.resume, config={"seed": given.run.seed}) as run:
            if run.has("first"):
                return DONE
            with run.stage("answers"):
                run.add({"key": "first"})
                raise KeyboardInterrupt

    assert care_repair(job) == (130, "interrupted; what is done is kept, go on with --resume\n")
    refused(job, "isn't empty")
    assert care_repair(job, "--resume") == (0, "")  # it found its row
    refused(job, "seed: 0 then, 1 now", arguments=["--resume", "--seed", "1"])
