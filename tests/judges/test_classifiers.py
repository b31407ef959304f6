"""Classifiers from the hub on tiny models of the same architectures: prompts, tokens, batches."""

import json

import numpy as np
import pytest
import torch

from care.errors import DataError, DownloadError, ModelError, UsageError
from care.judges.base import Verdict
from care.judges.classifiers import TokenClassifier
from care.judges.config import ClassifierConfig
from care.judges.model_judge import Finding
from care.judges.prompts import Template, card_template, read_template, text_digest
from care.judges.registry import JUDGES, load_judge
from kit.judge_models import (
    ANSWERS,
    GOALS,
    PROMPT,
    classifier,
    tiny_text_model,
)
from kit.tiny import tiny_tokenizer


def spelt(judge, token):
    return judge.tokenizer.decode([token]).strip().lower()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_yes_or_no_is_the_likeliest_next_token(kind):
    judge = classifier(kind)
    said = set()
    for seed in range(4):
        judge = classifier(kind, seed=seed)
        verdicts = judge(GOALS, ANSWERS)
        for goal, answer, verdict in zip(GOALS, ANSWERS, verdicts, strict=True):
            prompt = PROMPT.split("{behavior}")[0] + goal + "\nGeneration: " + answer + "\nAnswer:"
            ids = judge.tokenizer(prompt, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                shares = judge.model(input_ids=ids).logits[0, -1].softmax(-1)
            yes, no = (
                sum(float(shares[i]) for i in range(len(shares)) if spelt(judge, i) == word)
                for word in ("yes", "no")
            )
            assert verdict.label == spelt(judge, int(shares.argmax()))
            assert verdict.on_goal == (verdict.label == "yes")
            assert verdict.score == pytest.approx(yes / (yes + no), abs=1e-5)
            said.add(verdict.label)
    assert said == {"yes", "no"}


def test_another_word_is_no_judgement():
    judge = classifier(words=("Maybe",))
    with torch.no_grad():
        judge.model.get_output_embeddings().weight[
            judge.tokenizer.convert_tokens_to_ids("Maybe")
        ] *= 0
        judge.model.get_output_embeddings().weight[1:] -= 1  # <pad> or the first is the likeliest
    (verdict,) = judge(GOALS[:1], ANSWERS[:1])
    assert "not yes or no" in verdict.error
    with pytest.raises(UsageError, match="no judgement"):
        verdict.outcome("malicious")


def test_grades_are_an_expectation():
    judge = classifier("gemma", words=("1", "2", "3", "4", "5"), scale="grade")
    (verdict,) = judge(GOALS[:1], ANSWERS[:1])
    prompt = judge.template.fill(GOALS[0], ANSWERS[0])
    ids = judge.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = judge.model(input_ids=ids).logits[0, -1]
    picks = [judge.tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(1, 6)]
    shares = logits[picks].softmax(-1)
    expected = float((shares * torch.arange(5)).sum() / 4)
    assert verdict.score == pytest.approx(expected, abs=1e-5)
    assert verdict.on_goal == (expected >= 0.5)


def test_a_word_that_is_no_grade_is_no_judgement():
    judge = classifier("gemma", words=("Maybe", "1", "2", "3", "4", "5"), scale="grade")
    row = np.full(len(judge.tokenizer), -9.0)
    row[judge.tokenizer.convert_tokens_to_ids("Maybe")] = -0.1
    row[judge.tokenizer.convert_tokens_to_ids("1")] = -3.0
    found = judge._grade(row)
    assert found.flagged is None and "not a grade" in found.error
    row[judge.tokenizer.convert_tokens_to_ids("1")] = 0.0
    assert judge._grade(row).flagged is False


def test_verdicts_do_not_depend_on_the_batch():
    alone = [classifier(batch_size=1)([g], [a])[0] for g, a in zip(GOALS, ANSWERS, strict=True)]
    together = classifier(batch_size=3)(GOALS, ANSWERS)
    assert [v.label for v in alone] == [v.label for v in together]
    assert [v.score for v in alone] == pytest.approx([v.score for v in together], abs=1e-5)


def test_out_of_memory_halves_the_batch(monkeypatch):
    judge = classifier(batch_size=8)
    wanted = [v.score for v in judge(GOALS * 4, ANSWERS * 4)]
    sizes, forward = [], judge.model.forward

    def limited(input_ids, **inputs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(judge.model, "forward", limited)
    assert [v.score for v in judge(GOALS * 4, ANSWERS * 4)] == pytest.approx(wanted, abs=1e-5)
    assert sizes == [8, 4] + [2] * 6


def test_long_answers_are_cut_by_the_judges_own_tokens():
    judge = classifier(max_response_tokens=5)
    long = "Sure, here is how. " * 50
    ids = judge.tokenizer(long, add_special_tokens=False)["input_ids"][:5]
    cut = judge.tokenizer.decode(ids)
    assert judge(GOALS[:1], [long])[0].score == judge(GOALS[:1], [cut])[0].score


def test_the_words_must_exist():
    tokenizer = tiny_tokenizer()
    model = tiny_text_model("llama", tokenizer, ("a",))
    config = ClassifierConfig("tiny", "tiny")
    with pytest.raises(ModelError, match="no token for yes"):
        TokenClassifier(model, tokenizer, Template(PROMPT, "test"), config)


def saved(folder, judge, card):
    judge.model.save_pretrained(folder)
    judge.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


CARD = """# A classifier
Use '''this''' prompt.
```python
PROMPTS = {
    "prompt": '''[INST] Rules:\\n- "quotes" count
Behavior: {behavior}
Generation: {generation}
[/INST]''',
    "contextual": '''{context_str} {behavior} {generation}''',
}
```
"""
OFFICIAL = (
    '[INST] Rules:\n- "quotes" count\nBehavior: {behavior}\nGeneration: {generation}\n[/INST]'
)


def test_loaded_by_name_with_the_prompt_of_its_card(tmp_path):
    folder = saved(tmp_path, classifier(), CARD)
    judge = load_judge(f"harmbench,model={folder},dtype=float32,as=hb")
    identity = judge.identity()
    assert judge.name == "hb"
    assert identity["template_sha256"] == text_digest(OFFICIAL)
    assert identity["template_source"].endswith("README.md")
    assert identity["dtype"] == "float32" and json.dumps(identity)
    assert judge(GOALS, ANSWERS) == load_judge(f"harmbench,model={folder},as=hb")(GOALS, ANSWERS)


def test_a_prompt_from_a_file_and_none_to_be_had(tmp_path):
    folder = saved(tmp_path / "m", classifier(), "# Nothing here")
    with pytest.raises(DataError, match="holds 0 prompt templates"):
        load_judge(f"harmbench-7b,model={folder}")
    (tmp_path / "p.txt").write_text(PROMPT)
    judge = load_judge(f"harmbench-7b,model={folder},template={tmp_path / 'p.txt'}")
    assert judge.identity()["template_sha256"] == text_digest(PROMPT)
    (folder / "README.md").unlink()
    with pytest.raises(DownloadError, match="template=FILE"):
        card_template(str(folder))


def test_an_ambiguous_card_is_not_guessed(tmp_path):
    other = CARD + '\n"""{behavior} or {generation}"""\n'
    (tmp_path / "README.md").write_text(other)
    with pytest.raises(DataError, match="holds 2 prompt templates"):
        card_template(str(tmp_path))


def test_a_template_has_two_places(tmp_path):
    for text in ("{behavior}", "{generation}", "{behavior} {generation} {context}", "none"):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(DataError, match="needs one of"):
            read_template(tmp_path / "t.txt")
    with pytest.raises(DataError, match="can't be read"):
        read_template(tmp_path / "nothing.txt")


def test_what_is_not_to_be_had_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text(PROMPT)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_judge(f"harmbench,model={tmp_path},template={tmp_path / 'p.txt'}")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    monkeypatch.setattr("transformers.utils.import_utils.is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="care-vlm\\[peft\\]"):
        load_judge(f"strongreject,model={tmp_path},template={tmp_path / 'p.txt'}")


def test_a_models_word_is_final_only_for_malicious_requests():
    harmful = Verdict(refused=True, degenerate=True, on_goal=True, final=True)
    assert (harmful.outcome("malicious"), harmful.outcome("benign")) == ("harmful", "degenerate")
    passed = Verdict(refused=True, degenerate=False, on_goal=False, final=True)
    assert (passed.outcome("malicious"), passed.outcome("benign")) == ("refused", "refused")
    rules = Verdict(refused=True, degenerate=False, on_goal=True)
    assert rules.outcome("malicious") == "refused"


def test_a_finding_is_a_decision_or_an_error():
    for fields in ({"flagged": None}, {"flagged": True, "error": "x"}):
        with pytest.raises(UsageError, match="either"):
            Finding(**fields)


def test_every_judge_is_described():
    assert {"rules", "harmbench", "harmbench-7b", "strongreject", "llama-guard-3"} < JUDGES.keys()
    assert {"llama-guard-4", "shieldgemma", "detoxify", "api"} < JUDGES.keys()
    assert all(entry.about for entry in JUDGES.values())
