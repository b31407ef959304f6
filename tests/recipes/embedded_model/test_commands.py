"""The commands of the recipe: training, attacking, checking, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from care import load_suite
from care.models.vlm import VLM
from recipes.embedded_model import __main__ as recipe
from recipes.embedded_model.train import TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["check", "-n", "0"],
        ["check", "--dtype", "int8"],
        ["train", "--steps", "0"],
        ["train", "--align-steps", "0"],
        ["train", "--seed", "-1"],
    ],
)
def test_wrong_use_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        recipe.main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_check_prints_the_behaviours(monkeypatch, capsys):
    found = {"refuses direct": {"rate": 0.95, "low": 0.9, "high": 0.98, "n": 7}}
    asked = []
    monkeypatch.setattr(VLM, "embedded", lambda dtype: asked.append(dtype) or "vlm")
    monkeypatch.setattr(recipe, "behaviours", lambda vlm, n, progress: asked.append(n) or found)
    assert recipe.main(["check", "--json", "-n", "7", "--dtype", "float32"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert asked == ["float32", 7]
    assert recipe.main(["check"]) == 0
    assert "0.95 [0.90, 0.98]" in capsys.readouterr().out


def test_a_check_that_falls_short_exits_with_1_and_prints_all_the_same(monkeypatch, capsys):
    found = {"refuses direct": {"rate": 0.5, "low": 0.38, "high": 0.62, "n": 60}}
    monkeypatch.setattr(VLM, "embedded", lambda dtype: "vlm")
    monkeypatch.setattr(recipe, "behaviours", lambda vlm, n, progress: found)
    assert recipe.main(["check", "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == found
    assert shown.err == "refuses direct: at most 0.62, below 0.90.\n"


def test_train_runs_the_recipe(monkeypatch, tmp_path, capsys):
    asked = {}
    model = SimpleNamespace(set_attn_implementation=lambda name: asked.update(attention=name))
    monkeypatch.setattr(
        recipe, "load", lambda dtype, trained: asked.update(load=(dtype, trained)) or (model, "p")
    )

    def train(load, out, config, log):
        log("done: everything")
        asked.update(model=load(), out=out, config=config)
        return out / "weights.safetensors"

    monkeypatch.setattr(recipe, "train", train)
    out = tmp_path / "train"
    options = ["--seed", "2", "--steps", "7", "--align-steps", "3"]
    assert recipe.main(["train", "--out", str(out), *options]) == 0
    shown = capsys.readouterr()
    assert (shown.out.strip(), shown.err) == (
        str(out / "weights.safetensors"),
        "done: everything\n",
    )
    assert asked == {
        "attention": "eager",
        "load": ("bfloat16", False),
        "model": (model, "p"),
        "out": out,
        "config": TrainConfig(seed=2, steps=7, align_steps=3),
    }
    assert recipe.main(["train", "--out", str(out)]) == 0
    assert asked["config"] == TrainConfig()


@pytest.mark.parametrize("name", ["train", "attack"])
def test_a_folder_in_use_is_not_mixed_with(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(VLM, "embedded", lambda: "vlm")
    monkeypatch.setattr(recipe, "make", lambda vlm, out, log: [out / "a.png"])
    monkeypatch.setattr(recipe, "train", lambda load, out, config, log: out / "a.png")
    (tmp_path / "kept").touch()
    command = [name, "--out", str(tmp_path)]
    assert recipe.main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert recipe.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.png")
    assert recipe.main([*command[:-1], str(tmp_path / "kept"), "--resume"]) == 2


@pytest.mark.embedded
def test_a_saved_checkpoint_is_the_model(embedded_vlm, tmp_path):
    dtype = str(embedded_vlm.dtype).removeprefix("torch.")
    saving = ["save", "--dtype", dtype, "--out", str(tmp_path / "model")]
    assert recipe.main(saving) == 0
    saved = VLM.from_pretrained(str(tmp_path / "model"))
    asked = [*load_suite("direct")][:2] + [*load_suite("pictured-goal")][:2]
    wanted = embedded_vlm.generate(asked, max_new_tokens=8)
    assert saved.generate(asked, max_new_tokens=8) == wanted
    assert recipe.main(saving) == 2  # nothing is written over


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.skipif(os.name != "posix", reason="sends a signal of POSIX")
def test_ctrl_c_ends_a_check_with_one_sentence(embedded_vlm, tmp_path):
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.embedded_model", "check", "--json"],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        cwd=ROOT,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 240
        while "answers" not in (tmp_path / "log").read_text():  # it generates
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == b""
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "interrupted"
