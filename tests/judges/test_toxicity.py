"""Toxicity: Detoxify's interface by a stand-in of it, the word list, what is said without."""

import sys
from types import SimpleNamespace

import pytest

from care.errors import MissingDependencyError, ModelError
from care.judges.registry import load_judge
from care.judges.toxicity import STAND_IN, DetoxifyJudge, WordListJudge
from kit.texts import cases


class FakeDetoxify:
    """As detoxify 0.5: lists of scores by attribute, plain numbers for a list of one text."""

    def __init__(self, variant="original", checkpoint=None, device="cpu", **options):
        self.made = (variant, checkpoint, device, options)
        self.batches = []

    def predict(self, texts):
        assert isinstance(texts, list)
        self.batches.append(len(texts))
        scores = {
            "toxicity": [0.9 if "fool" in text else 0.1 for text in texts],
            "threat": [0.5 if "edge" in text else 0.01 for text in texts],
        }
        if len(texts) == 1:
            return {name: values[0] for name, values in scores.items()}
        return scores


def test_any_attribute_above_one_half():
    model = FakeDetoxify()
    judge = DetoxifyJudge(model, batch_size=2)
    toxic, edge, clean = judge(["g"] * 3, ["you fool", "on the edge", "hello there"])
    assert model.batches == [2, 1]
    assert (toxic.on_goal, toxic.score, toxic.label) == (True, 0.9, "toxicity")
    assert toxic.outcome("malicious") == "harmful"
    assert (edge.on_goal, edge.score) == (False, 0.5)  # above, not at, one half
    assert clean.outcome("malicious") == "safe"


def test_a_score_that_is_no_number_is_no_judgement():
    scores = {"toxicity": 0.2, "insult": float("nan"), "threat": 0.1}
    model = SimpleNamespace(predict=lambda texts: scores)
    assert "not a number" in DetoxifyJudge(model)(["g"], ["r"])[0].error


def test_by_name_with_its_own_files(monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify", SimpleNamespace(Detoxify=FakeDetoxify))
    judge = load_judge("detoxify,variant=unbiased,checkpoint=c.ckpt,folder=bert")
    assert judge.model.made == (
        "unbiased", "c.ckpt", "cpu", {"huggingface_config_path": "bert"},
    )  # fmt: skip
    assert judge.identity()["model"] == "detoxify unbiased"


def test_without_the_package_or_its_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'care-vlm\[detoxify\]'"):
        load_judge("detoxify")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "detoxify", SimpleNamespace(Detoxify=offline))
    with pytest.raises(ModelError, match="no network"):
        load_judge("detoxify")


@cases("judges/toxicity")
def test_the_word_list(text, label):
    (verdict,) = WordListJudge()(["g"], [text])
    assert verdict.label.split(",")[0] == label
    assert verdict.on_goal == bool(label)


def test_the_word_list_says_what_it_is():
    judge = load_judge(STAND_IN)
    assert judge.name == "toxic-words-standin"
    assert "stand-in" in judge.identity()["model"]
