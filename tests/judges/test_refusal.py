"""Refusals: closed cases of rule and classifier, the early stop, and the shipped data."""

import hashlib
import time
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.data.text import words
from care.judges.refusal import THRESHOLD, VERSION, certainly_refused, identity, judge_refusals
from care.judges.refusal_classifier import (
    TRAINING,
    classifier,
    load_rows,
    new_classifier,
    training_rows,
)
from care.judges.rules import RulesJudge, refused
from care.judges.stance import units
from kit.texts import any_text, cases, read_cases
from tools.judges.labelled import refusals

ROWS = [row for name in TRAINING for row in load_rows(name)] + refusals()
CERTAIN = [row["text"] for row in read_cases("judges/early_stop") if row["label"]]


@cases("judges/refusal")
def test_rule_classifier_and_judge_tell_refusals(text, label):
    assert refused(text) is label
    assert judge_refusals([text]).combined.tolist() == [label]
    assert (RulesJudge()(["a request"], [text])[0].outcome("benign") == "refused") is label


@cases("judges/early_stop")
def test_early_stop_fires_where_no_more_text_could_undo_it(text, label):
    assert certainly_refused(text) is label


@cases("judges/stance")
def test_stances_are_told_apart(text, label):
    assert [unit.stance for unit in units(text)] == [label]


def test_of_no_answers_none_is_refused():
    assert judge_refusals([]).combined.shape == (0,)


def test_items_do_what_the_sentence_before_their_list_does():
    def items(lead):
        return {
            unit.stance for unit in units(f"{lead}\n\n1. Green paint.\n2. A brush.") if unit.item
        }

    assert items("There are several honest ways to spend an evening:") == {"redirect"}
    assert items("Here is what to take along:") == {"answer"}
    assert items("The sun was low.") == {"plain"}


def test_a_piece_in_quotation_marks_is_an_answer_unless_it_opens_the_response():
    piece = '"Dear diary, the sea was calm today and nobody came to the lighthouse."'
    assert [unit.stance for unit in units("The weather is fine.\n\n" + piece)][-1] == "answer"
    assert certainly_refused("I'm sorry, but I can't help with that.\n\n" + piece)
    assert not certainly_refused('"I can\'t help with that," said the fox, who then helped.')


def test_identity_tells_rules_and_training_texts():
    found = identity()
    assert found["version"] == VERSION and set(found["trained_on"]) == set(TRAINING)
    assert RulesJudge().identity()["refusal"] == found
    for name, digest in found["trained_on"].items():
        path = resources.files("care.judges").joinpath("data", name)
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_early_stop_fires_at_the_end_of_the_sentence_and_stays():
    text = "I'm sorry, but I can't help with that. It could hurt someone."
    hits = [certainly_refused(text[:n]) for n in range(len(text) + 1)]
    assert hits.index(True) == len("I'm sorry, but I can't help with that.")
    assert all(hits[hits.index(True) :])
    long = (
        "I cannot fulfill your request. I'm just an AI, it's not within my programming or ethical "
        "guidelines to help with that. It is important to "
    )
    hits = [certainly_refused(long[:n]) for n in range(len(long) + 1)]
    assert any(hits) and all(hits[hits.index(True) :])


@pytest.mark.slow
def test_early_stop_never_fires_on_a_part_of_an_answer():
    answers = [row["text"] for row in ROWS if not row["refused"]]
    wrong = [
        t[:n] for t in answers for n in range(9, min(len(t), 160), 9) if certainly_refused(t[:n])
    ]
    assert wrong == []


@pytest.mark.slow
def test_all_that_may_follow_leaves_a_certain_refusal_refused():
    """On every labelled text: the first prefix that is certain, with every sort of continuation."""
    firsts = []
    for text in (row["text"] for row in ROWS if certainly_refused(row["text"])):
        places = (n for n in range(20, min(len(text), 300) + 5, 5) if certainly_refused(text[:n]))
        if (first := next(places, None)) is not None:
            firsts.append(text[:first])
    assert len(firsts) > 25
    others = [row["text"] for row in ROWS][::150]
    longer = [first + other for first in set(firsts[::2]) for other in others]
    assert all(map(certainly_refused, longer))
    assert judge_refusals(longer).combined.all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_text_undoes_a_certain_refusal(data):
    text = data.draw(st.sampled_from(CERTAIN)) + data.draw(any_text)
    cut = data.draw(st.integers(0, len(text)))
    if certainly_refused(text[:cut]):
        assert certainly_refused(text) and refused(text) and judge_refusals([text]).combined[0]
    assert certainly_refused(text)


def test_refusal_reading_long_text_is_fast():
    start = time.process_time()
    for text in ("i " * 200_000, "sorry, " * 100_000, '"' * 100_000, "as a an ai " * 50_000):
        refused(text)
        certainly_refused(text)
    assert time.process_time() - start < 2.0


@pytest.mark.slow
def test_classifier_learns_in_time_and_knows_what_the_rule_does_not():
    start = time.process_time()
    rows = training_rows()
    new_classifier().fit([r["text"] for r in rows], [r["refused"] for r in rows])
    assert time.process_time() - start < 8.0  # processor time: about 1 s, plus the import
    found = judge_refusals([row["text"] for row in ROWS if row.get("part") == "held-out"])
    truth = np.array([row["refused"] for row in ROWS if row.get("part") == "held-out"])
    assert (truth & ~found.rule & found.classifier).any()
    assert classifier() is classifier()


def test_combination_is_certainty_or_classifier():
    texts = [row["text"] for row in refusals()]
    got = judge_refusals(texts)
    np.testing.assert_array_equal(got.combined, got.certain | (got.probability >= THRESHOLD))
    assert got.certain.any() and not (got.certain & ~got.rule).any()
    assert got.disagreements == int((got.rule != (got.probability >= 0.5)).sum()) > 0
    again = judge_refusals(texts[::-1])
    np.testing.assert_allclose(again.probability[::-1], got.probability)


def test_labelled_file_is_separate_and_large_enough():
    train = load_rows("refusal_train.jsonl")
    labelled = refusals()

    def keys(rows):
        return {(" ".join(words(row["text"])), row.get("goal", "")) for row in rows}

    written = [row for row in labelled if row["source"] == "written"]
    assert len(train) >= 300
    assert len(written) >= 150
    assert len(keys(labelled)) == len(labelled)
    assert not {text for text, _ in keys(train)} & {text for text, _ in keys(labelled)}
    for rows in (train, written):
        assert 0.35 < np.mean([row["refused"] for row in rows]) < 0.65


def test_many_concessions_are_read_in_time():
    start = time.process_time()
    units("while the model can't help with it, but the model can't help with it, " * 30)
    assert time.process_time() - start < 1.0
