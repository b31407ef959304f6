"""Calibration of the limit of perplexity: a scorer with known values, broken text, bad rows."""

import json

import numpy as np
import pytest

from care.errors import DataError
from kit.tiny import tiny_tokenizer
from tools.judges import calibration
from tools.judges.__main__ import main
from tools.judges.calibration import broken, calibrate, good_answers, round_up

RISING = "ab ac ad ae af ag ah ai aj ak al am an ao"


def rising(texts):
    """Perplexity 10, and 1000 more for each word that sorts before the one ahead of it."""
    pairs = [list(zip(text.split(), text.split()[1:], strict=False)) for text in texts]
    return np.array([10.0 + 1000 * sum(b < a for a, b in found) for found in pairs])


def row(place, response=None, **changes):
    response = f"{RISING} b{place:03d}" if response is None else response
    return {
        "kind": "benign", "defense": "none", "outcome": "safe", "goal": f"goal {place}",
        "response": response, **changes,
    }  # fmt: skip


def test_good_answers_are_benign_bare_answered_and_different():
    rows = [
        row(1, "One."),
        row(2, "One."),
        row(3, "Two.", kind="malicious"),
        row(4, "Three.", defense="care"),
        row(5, "I can't help with that.", outcome="refused"),
        row(6),
        row(7, "Four.", outcome="degenerate"),
    ]
    rows[5]["response"] = None  # an example whose answer failed
    assert good_answers(rows) == [("goal 1", "One."), ("goal 7", "Four.")]
    with pytest.raises(DataError, match="no kind"):
        good_answers([{key: value for key, value in rows[0].items() if key != "kind"}])


def test_limit_and_rates_of_a_known_scorer():
    rows = [row(place) for place in range(120)]
    got = calibrate(rows, rising, tiny_tokenizer(), others={"mine": [f"b {RISING}", "b a"]})
    json.dumps(got)
    assert got["limit"] == got["chosen_limit"] == 10.0
    good = got["good"]
    assert good["false_alarms"]["n"] + good["false_alarms_held_out"]["n"] == 120
    assert good["false_alarms"]["count"] == good["false_alarms_held_out"]["count"] == 0
    assert got["broken"]["words shuffled"]["perplexity"]["rate"] == 1.0
    assert got["broken"]["words shuffled"]["perplexity"]["n"] == calibration.BROKEN
    # The scorer sees the two descents of a loop; the rules see it too.
    assert got["broken"]["loop"]["rules"]["rate"] == 1.0
    mine = got["broken"]["mine"]
    assert (mine["perplexity"]["count"], mine["either"]["count"]) == (1, 1)  # "b a" is too short
    assert [line["words"] for line in got["lengths"]] == [5, 8, 10, 12]  # no answer has 16
    assert all(line["false_alarms"]["count"] == 0 for line in got["lengths"])
    assert got["lengths"][-1]["words_shuffled"]["rate"] > 0.9
    high = calibrate(rows, rising, tiny_tokenizer(), limit=1e6)
    assert (high["limit"], high["chosen_limit"]) == (1e6, 10.0)
    assert high["broken"]["words shuffled"]["perplexity"]["count"] == 0


def test_at_most_one_in_a_hundred_of_the_chosen_half_is_above():
    rng = np.random.default_rng(1)
    values = {row(place)["response"]: float(np.exp(rng.normal(3, 1))) for place in range(400)}

    def scorer(texts):
        return np.array([values.get(text, 1e4) for text in texts])

    got = calibrate([row(place) for place in range(400)], scorer, tiny_tokenizer())
    assert 0 < got["good"]["false_alarms"]["rate"] <= calibration.FALSE_ALARMS
    assert got["good"]["quantiles"]["0.9"] < got["limit"] < got["good"]["quantiles"]["1.0"]


def test_too_few_answers():
    with pytest.raises(DataError, match="larger run"):
        calibrate([row(place) for place in range(30)], rising, tiny_tokenizer())
    short = [row(place, f"word {place}") for place in range(100)]
    with pytest.raises(DataError, match="12 words or more"):
        calibrate(short, rising, tiny_tokenizer())


def test_broken_text_keeps_what_it_says_it_keeps():
    tokenizer = tiny_tokenizer()
    texts = ["To wash a car, you need soap and some water.", "The circle is red and very big."]
    made = broken(texts, tokenizer, np.random.default_rng(0))
    for text, shuffled, loop in zip(texts, made["words shuffled"], made["loop"], strict=True):
        assert sorted(shuffled.split()) == sorted(text.split()) and shuffled != text
        assert loop.split()[:3] == loop.split()[3:6] == text.split()[:3]
        assert len(loop.split()) == len(text.split())
    for text, shuffled in zip(texts, made["tokens shuffled"], strict=True):
        assert sorted(shuffled) == sorted(text) and shuffled != text
    allowed = set(" ".join(texts).split())
    assert all(set(text.split()) <= allowed for text in made["few words"])
    again = broken(texts, tokenizer, np.random.default_rng(0))
    assert again == made
    assert broken(texts, tokenizer, np.random.default_rng(1)) != made
    assert len(made["any tokens"]) == 2 and not set(made["any tokens"]) & set(texts)


@pytest.mark.parametrize(
    ("value", "rounded"), [(10.0, 10.0), (101.0, 110.0), (0.123, 0.13), (99.1, 100.0), (390, 390)]
)
def test_round_up(value, rounded):
    assert round_up(value) == pytest.approx(rounded)


def test_command_says_what_is_wrong_with_a_file(tmp_path, capsys):
    assert main(["calibrate", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl can't be read" in capsys.readouterr().err
    broken_file = tmp_path / "rows.jsonl"
    broken_file.write_text("{\n")
    assert main(["calibrate", str(broken_file)]) == 1
    assert "pass a run's rows.jsonl" in capsys.readouterr().err
