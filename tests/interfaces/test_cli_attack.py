"""`care attack`: options, files, resuming, Ctrl-C; a tiny model stands in for the embedded one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from care.attacks import job as jobs
from care.attacks import pgd
from care.attacks.config import AttackConfig
from care.data.example import Example
from care.data.small_world import suites
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.repair import Repair
from care.interfaces.cli import app as cli
from care.models.vlm import VLM
from kit.repairs import a_gate, made
from kit.tiny import picture, tiny_vlm

GOALS = ("wash a car", "build a small house from wood", "do this")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `care attack` on a tiny model: exit code, standard output, standard error."""
    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": tiny_vlm()))
    asked = [Example(f"g{k}", f"How do you {goal}?", goal=goal) for k, goal in enumerate(GOALS)]
    targets = [f"To {goal}, you'll need" for goal in GOALS]
    monkeypatch.setattr(suites, "attack_requests", lambda: (asked, targets))
    picture(3, (28, 28)).save(tmp_path / "start.png")

    def call(*arguments, out="out"):
        start = ["--start", str(tmp_path / "start.png")]
        code = cli.main(["attack", "--out", str(tmp_path / out), *start, *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def facts(tmp_path, out="out"):
    return json.loads((tmp_path / out / "attack.json").read_text())


def test_it_explains_itself(capsys):
    assert cli.main(["attack", "-h"]) == 0
    shown = capsys.readouterr().out
    assert "care attack" in shown
    for option in ("--preset", "--kappa", "--repair", "--evasion", "--resume", "--seed"):
        assert option in shown


def test_an_image_and_its_facts_are_written(run, tmp_path):
    code, out, _ = run("--steps", "6", "--kappa", "16")
    assert code == 0 and "image.png" in out
    found = facts(tmp_path)
    image = np.asarray(Image.open(tmp_path / "out" / "image.png")).astype(int)
    start = np.asarray(picture(3, (28, 28))).astype(int)
    assert 0 < np.abs(image - start).max() <= 16
    assert found["config"]["steps"] == 6 and found["config"]["epsilon"] == 16 / 255
    made = found["images"]["image"]
    assert len(made["losses"]) == 6 and made["loss"] < made["losses"][0]
    assert made["saved_loss"] == pytest.approx(made["loss"], abs=1e-4)
    assert found["requests"] == 3 and found["repair"] is None


def test_a_folder_that_holds_something_needs_resume(run, tmp_path):
    assert run("--steps", "2")[0] == 0
    before = (tmp_path / "out" / "image.png").read_bytes()
    code, _, err = run("--steps", "2")
    assert code == 2 and "--resume" in err
    assert run("--steps", "2", "--resume")[0] == 0
    assert (tmp_path / "out" / "image.png").read_bytes() == before
    code, _, err = run("--steps", "2", "--seed", "1", "--resume")
    assert code == 2 and "another attack" in err


def test_ctrl_c_keeps_what_is_done(run, tmp_path, monkeypatch):
    whole = run("--steps", "6", out="whole")
    assert whole[0] == 0
    real, done = pgd.advance, []

    def interrupted(*arguments):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(pgd, "advance", interrupted)
    code, _, err = run("--steps", "6")
    assert code == 130 and "--resume" in err
    done.clear()
    assert run("--steps", "6", "--resume")[0] == 0
    assert len(done) == 2
    same = [(tmp_path / out / "image.png").read_bytes() for out in ("out", "whole")]
    assert same[0] == same[1]


def test_a_corpus_is_what_toxic_presets_need(run, tmp_path):
    code, _, err = run("--preset", "qi-32", "--steps", "2")
    assert code == 2 and "--corpus" in err
    (tmp_path / "corpus.txt").write_text("Water and soap.\n\nA small house.\n")
    corpus = ["--corpus", str(tmp_path / "corpus.txt")]
    assert run("--preset", "qi-32", "--steps", "2", *corpus)[0] == 0
    found = facts(tmp_path)
    assert found["loss_of"] == "toxic" and found["requests"] == 2
    assert found["config"]["target_tokens"] is None
    assert run("--steps", "2", *corpus, out="other")[0] == 0
    assert facts(tmp_path, "other")["loss_of"] == "toxic"
    code, _, err = run("--steps", "2", *corpus, "--target", "To {goal}", out="third")
    assert code == 2 and "not both" in err


def test_requests_of_ones_own_and_a_target(run, tmp_path, monkeypatch):
    lines = [{"prompt": "How to wash a car?", "goal": "wash a car"}, {"prompt": "Do this."}]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    seen = []
    real = jobs.universal_image

    def look(vlm, examples, targets, *rest, **options):
        seen.append(targets)
        return real(vlm, examples, targets, *rest, **options)

    monkeypatch.setattr(jobs, "universal_image", look)
    assert run("--requests", str(file), "--steps", "1")[0] == 0
    assert run("--requests", str(file), "--steps", "1", "--target", "To {goal}", out="b")[0] == 0
    assert seen[0][0] == "Sure, here is how to wash a car"
    assert seen[1] == ["To wash a car", "To Do this."]


@pytest.fixture
def repair(tmp_path, monkeypatch):
    late = {"scopes": ("decision", "response"), "strength": 1.5}
    found = Repair((made(gate=a_gate(), **late),), name="mine")
    monkeypatch.setattr(Repair, "load", classmethod(lambda cls, path, vlm=None: found))
    return ["--repair", str(tmp_path / "repair")]


def test_an_attack_through_a_repair(run, repair, tmp_path):
    assert run("--steps", "3", *repair, "--evasion", "0.5", "--gate", "soft")[0] == 0
    found = facts(tmp_path)
    assert found["repair"] == "mine" and found["gate"] == "soft" and found["evasion"] == 0.5


def test_an_attack_through_another_saved_defense(run, tmp_path):
    saved = NeuronSuppression.of(tiny_vlm(), [(1, 3)], "zero", name="few").save(tmp_path / "few")
    assert run("--steps", "2", "--repair", str(saved))[0] == 0
    found = facts(tmp_path)
    assert found["repair"] == "few"
    assert found["made_of"]["repair"] == NeuronSuppression.load(saved).digest()
    code, _, said = run("--steps", "2", "--repair", str(saved), "--evasion", "1", out="b")
    assert code == 2 and "needs the sites of a repair, but 'few' is none" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--preset", "fgsm"], "care-16"),
        (["--compare"], "care evaluate --repair DIR --adaptive PRESET"),
        (["--evasion", "1"], "--repair"),
        (["--target", " "], "--target"),
        (["--kappa", "300"], "kappa"),
        (["--gate", "open"], "gate"),
        (["--method", "fgsm"], "method"),
    ],
)
def test_wrong_use_exits_with_2(run, arguments, told):
    code, _, err = run(*arguments)
    assert code == 2 and told in err and "Traceback" not in err


def test_a_radius_sets_the_first_step_of_apgd(tmp_path):
    corpus = tmp_path / "c.txt"
    astra = AttackConfig(preset="astra-apgd-16", corpus=corpus, kappa=64, steps=7)
    config = astra.pgd()
    assert (config.epsilon, config.step_size, config.steps) == (64 / 255, 128 / 255, 7)
    assert AttackConfig(kappa=0).pgd().epsilon is None
    own = AttackConfig(method="apgd", kappa=0).pgd()
    assert (own.method, own.momentum, own.step_size) == ("apgd", 0, 2)
    assert AttackConfig(method="mi-fgsm").pgd().momentum == 1
    assert AttackConfig(method="pgd").pgd().momentum == 0
    back = replace(astra, method="pgd").pgd()
    assert (back.method, back.step_size) == ("pgd", 1 / 255)
    # ASTRA's images with the other loss.
    requests = AttackConfig(preset="astra-32", requests=tmp_path / "r.jsonl")
    assert requests.loss == "jailbreak"


@pytest.mark.embedded
def test_a_few_steps_on_the_embedded_model(embedded_vlm, monkeypatch, tmp_path):
    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": embedded_vlm))
    assert cli.main(["attack", "--out", str(tmp_path / "out"), "--steps", "6"]) == 0
    made = facts(tmp_path)["images"]["image"]
    assert made["loss"] < made["losses"][0] - 0.1
    assert made["saved_loss"] == pytest.approx(made["loss"], abs=0.01)
