"""What a model says before its answer: told apart, judged as nothing, never stopped in."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from care import Example, Suite
from care.errors import UsageError
from care.evaluation.config import EvaluationConfig
from care.evaluation.rejudge import judged, open_verdicts, rejudge
from care.evaluation.runner import evaluate
from care.judges.answer_matching import correct
from care.judges.base import Verdict, ask
from care.judges.model_judge import Finding, ModelJudge
from care.judges.rules import RulesJudge, refused, rules_for
from care.models.spec import ModelSpec
from care.models.thoughts import (
    TAGS,
    UNFINISHED,
    answer_of,
    known_tags,
    opened_by,
    outside_thoughts,
    read,
    text_of,
)
from care.models.vlm import Answer
from care.pipeline.config import RepairJob
from care.runs.run import Run
from kit.tiny import tiny_vlm, vlm_saying

REFUSAL = "I'm sorry, but I can't help with that."
WISH = "The user wants to build a birdhouse. To build a birdhouse one needs wood."

ENDED = [
    ("<think >Let me see.</think >" + REFUSAL, REFUSAL),
    ("\ufeff<think>Let me see.</think>" + REFUSAL, REFUSAL),
    ("<|im_start|>assistant\n<think>Let me see.</think>" + REFUSAL, REFUSAL),
    ("<|start_header_id|>assistant<|end_header_id|>\n\n<think>Hm.</think>" + REFUSAL, REFUSAL),
    ("<analysis>Let me see.</analysis>\n" + REFUSAL, REFUSAL),
    (
        "<SUMMARY>Asked.</SUMMARY>\n<CAPTION>A dog.</CAPTION>\n<REASONING>So.</REASONING>\n"
        f"<CONCLUSION>{REFUSAL}</CONCLUSION>",
        REFUSAL,
    ),
    (f"<think>\n{WISH}\n</think>\n\n{REFUSAL}", REFUSAL),
    (f"{WISH}\n</think>\n\n{REFUSAL}", REFUSAL),
    (f"  \n<THINK>{WISH}</Think>{REFUSAL}", REFUSAL),
    (f"<think>\n\n</think>\n\n{REFUSAL}", REFUSAL),
    (f"<think></think>{REFUSAL}", REFUSAL),
    (f"<thinking>{WISH}</thinking>{REFUSAL}", REFUSAL),
    (f"<reasoning>{WISH}</reasoning>\n{REFUSAL}", REFUSAL),
    (f"◁think▷{WISH}◁/think▷{REFUSAL}", REFUSAL),
    (f"{WISH}◁/think▷{REFUSAL}", REFUSAL),
    (f"[THINK]{WISH}[/THINK]{REFUSAL}", REFUSAL),
    (f"<|channel>thought\n{WISH}<channel|>{REFUSAL}", REFUSAL),
    (f"<|begin_of_thought|>{WISH}<|end_of_thought|>\n<|begin_of_solution|>No.<|end_of_solution|>",
     "No."),
    (f"<|channel|>analysis<|message|>{WISH}<|end|><|start|>assistant<|channel|>final<|message|>"
     f"{REFUSAL}<|return|>", REFUSAL),
    (f"analysis{WISH}assistantfinal{REFUSAL}", REFUSAL),
    (f"<think>{WISH}</think><answer>red</answer>", "red"),
    (f"<think>{WISH}</think><answer>red", "red"),
    (f"<think>{WISH}</think><|begin_of_box|>red<|end_of_box|>", "red"),
    (f"<think>{WISH}</think>It is <|begin_of_box|>C<|end_of_box|>.", "It is **C**."),
    (f"<think>{WISH}</think><think>Once more.</think>{REFUSAL}", REFUSAL),
    (f"<think>Should I use <think> tags?</think>{REFUSAL}", REFUSAL),
    (f"<think>Should I use <think> and </think> tags?</think>{REFUSAL}", REFUSAL),
    (f"assistant\n<think>{WISH}</think>{REFUSAL}", REFUSAL),
    ('He says "5 inches </think> It is 6" tall.', 'It is 6" tall.'),
    ("<think>Write code.</think>```html\n<think>x</think>\n```", "```html\n<think>x</think>\n```"),
]  # fmt: skip
UNENDED = [
    "<SUMMARY>Asked.</SUMMARY>\n<CAPTION>A dog.</CAPTION>\n<REASONING>The answer is B",
    "<think >Let me see",
    f"<think>\n{WISH}",
    "<think>",
    f"<thinking>{WISH}</think",
    f"◁think▷{WISH}",
    f"<|channel|>analysis<|message|>{WISH}",
    f"<|channel|>analysis<|message|>{WISH}<|end|><|start|>assistant<|channel|>commentary<|message|>",
    f"<|channel>thought\n{WISH}",
    f"analysis{WISH}",
    "<think>a</think><think>b",
    "<|begin_of_thought|>x",
]
WHOLE = [
    "<SUMMARY>The text is about dogs.</SUMMARY>",
    "A red circle.",
    "",
    "Models write <think> before they answer.",
    "Use <think>…</think> around it, as in <think>x</think>.",
    'The tag "</think>" closes a thought.',
    "Write `</think>` at the end.",
    "```html\n<p>a</p></think>\n```",
    "<div><think>a</think></div>",
    "analysis of the picture: red",
    "Analysis: the picture is red.",
    "2 < 3 and 5 > 4",
]


@pytest.mark.parametrize(("text", "answer"), ENDED)
def test_an_answer_after_thoughts(text, answer):
    found = read(text)
    assert found.answer == answer
    assert found.thoughts and answer not in found.thoughts
    assert read(answer).answer == answer


@pytest.mark.parametrize("text", UNENDED)
def test_thoughts_without_an_end_are_no_answer(text):
    assert read(text).answer is None and answer_of(text) is None


@pytest.mark.parametrize("text", WHOLE)
def test_an_answer_that_mentions_a_tag_stays_whole(text):
    assert read(text).answer == text and read(text).thoughts is None


pieces = st.sampled_from([mark for pair in TAGS for mark in pair] + ["a", "\n", " ", '"', "`", "<"])


@settings(max_examples=50, deadline=None)
@given(st.lists(pieces | st.text(max_size=4), max_size=12).map("".join))
def test_reading_an_answer_again_changes_nothing(text):
    answer = answer_of(text)
    assert answer is None or answer_of(answer) == answer


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TAGS), st.text(alphabet="abc \n.", max_size=30), st.text("xyz ", min_size=1))
def test_any_thought_between_any_tags(pair, thought, answer):
    opening, closing = pair
    assert answer_of(f"{opening}{thought}{closing}{answer}") == answer.strip()
    assert answer_of(f"{thought}{closing}{answer}") == answer.strip()
    assert answer_of(f"{opening}{thought}") is None


def test_tags_of_ones_own():
    tags = known_tags(["Here is my thought process:…Here is my response:", "<a>...</a>"])
    assert answer_of("Here is my thought process: x Here is my response: no", tags) == "no"
    assert answer_of("<a>x</a>no", tags) == "no" and answer_of("<think>x</think>no", tags) == "no"
    assert answer_of("<a>x</a>no") == "<a>x</a>no"
    for wrong in ("<a>", "…</a>", "<a>…", "a…b…c"):
        with pytest.raises(UsageError, match="OPEN…CLOSE"):
            known_tags([wrong])


# -- judges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text, answer in ENDED if answer == REFUSAL])
def test_a_refusal_after_thoughts_is_a_refusal(text):
    (verdict,) = RulesJudge()(["build a birdhouse"], [text])
    assert verdict.outcome("malicious") == verdict.outcome("benign") == "refused"
    assert refused(text)


@pytest.mark.parametrize("text", UNENDED)
def test_unfinished_thoughts_have_no_outcome(text):
    (verdict,) = RulesJudge()(["build a birdhouse"], [text])
    assert verdict.error == UNFINISHED
    for kind in ("malicious", "benign"):
        with pytest.raises(UsageError, match="no judgement"):
            verdict.outcome(kind)
    assert not refused(text) and not correct(("wood", "yes", "A"), text)


def test_references_are_looked_for_in_the_answer():
    assert not correct(("yes",), "<think>Yes? No...</think>No")
    assert correct(("no",), "<think>Yes? Yes.</think>No")
    assert not correct(("B",), "<think>(B) looks right. The answer is B.</think>C")
    assert correct(("C",), "<think>Option B?</think>C")
    assert not correct(("3",), "3 or 4? I count 3.</think>4")


def test_perplexity_and_coherence_see_the_answer():
    seen = []

    def perplexity(texts):
        seen.extend(texts)
        return np.ones(len(texts))

    answer = "You need some wood, a saw, a hammer and nails to build it well."
    broken = "<think>" + "no no no no no " * 20 + "</think>" + answer
    (verdict,) = RulesJudge(perplexity)(["build a birdhouse"], [broken])
    assert seen == [answer] and not verdict.degenerate
    (verdict,) = RulesJudge()(["x"], ["<think>" + answer + "</think>" + "no " * 20])
    assert verdict.degenerate


class Asked(ModelJudge):
    """Flags everything and keeps what it was shown."""

    def __init__(self):
        super().__init__("asked")
        self.seen = []

    def identity(self):
        return {"judge": "asked"}

    def find(self, goals, responses, images):
        self.seen += zip(goals, responses, strict=True)
        return [Finding(True) for _ in goals]


def test_a_model_judge_is_shown_answers_alone():
    judge = Asked()
    first, open_, last = judge(
        ["a", "b", "c"], [f"<think>{WISH}</think>Take wood.", f"<think>{WISH}", "Take nails."]
    )
    assert judge.seen == [("a", "Take wood."), ("c", "Take nails.")]
    assert first.on_goal and last.on_goal and open_.error == UNFINISHED


class Bare:
    """A judge of somebody else's, which knows nothing of thoughts."""

    name = "bare"

    def __init__(self):
        self.seen = []

    def identity(self):
        return {"judge": "bare"}

    def __call__(self, goals, responses):
        self.seen += responses
        return [Verdict(False, False, True) for _ in goals]


def test_any_judge_is_shown_answers_alone():
    judge = Bare()
    verdicts = ask(judge, ["a", "b"], [f"<think>{WISH}</think>Take wood.", f"<think>{WISH}"])
    assert judge.seen == ["Take wood."]
    assert [v.error for v in verdicts] == [None, UNFINISHED]


# -- runs ------------------------------------------------------------------------------------------


def test_an_evaluation_counts_unfinished_answers_apart(tmp_path):
    answers = [f"<think>{WISH}</think>No", f"<think>{WISH}", f"<think>No</think>{REFUSAL}"]
    suite = Suite(
        "s",
        "utility",
        tuple(Example(str(i), "Is it red?" + "?" * i, references=("no",)) for i in range(3)),
    )
    with Run(tmp_path / "run", config={}) as run:
        table = evaluate(vlm_saying(answers), [suite], [None], judge=RulesJudge(), run=run)
        rows = table.rows
        assert [row["response"] for row in rows] == answers  # what was said is kept
        assert [row["outcome"] for row in rows] == ["safe", None, "refused"]
        assert [row["correct"] for row in rows] == [True, None, False]
        assert UNFINISHED in rows[1]["error"] and table.errors("s", "none") == 1
        assert table.rate("s", "none").n == 2

        verdicts, judge = open_verdicts(run), Bare()
        assert rejudge(run, judge, verdicts) == 1
        assert judge.seen == ["No", REFUSAL]
        again = judged(run.rows(), verdicts.all(), "bare")
        assert [row["outcome"] for row in again] == ["safe", None, "safe"]
        verdicts.close()


# -- models ----------------------------------------------------------------------------------------


def test_an_early_stop_sees_the_answer_alone():
    seen = []
    stop = outside_thoughts(lambda text: seen.append(text) or "sorry" in text)
    assert not stop("<think>I'm sorry") and seen == []
    assert not stop("<think>I'm sorry</think>Well") and seen == ["Well"]
    assert stop("<think>x</think>I'm sorry")


def scripted_vlm(text, template_end=""):
    """A tiny model that says `text`, token by token, and whose template may end in a tag."""
    vlm = tiny_vlm()
    for part in (vlm.processor, vlm.tokenizer):
        if getattr(part, "chat_template", None):
            part.chat_template = part.chat_template + template_end
    ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    forward = vlm.model.forward

    def said(*args, **options):
        out = forward(*args, **options)
        row, step = out.logits, said.step
        row[...] = -10.0
        row[:, -1, ids[step] if step < len(ids) else vlm.tokenizer.eos_token_id] = 10.0
        said.step += 1
        return out

    said.step = 0
    vlm.model.forward = said
    return vlm


def test_a_stop_while_generating_waits_for_the_answer():
    text = "<think>I'm sorry, no, no, no, no, no.</think>Take some wood."
    answers = scripted_vlm(text).answers(Example("a", "Hi"), max_new_tokens=200, stop=refused)
    assert answers[0].text == text
    stop = lambda said: "Take" in said  # noqa: E731
    (cut,) = scripted_vlm(text).answers(Example("a", "Hi"), max_new_tokens=200, stop=stop)
    assert cut.text.startswith("<think>I'm sorry") and "Take" in cut.text


def test_a_template_that_opens_the_thoughts_is_read_with_them():
    for end in ("<think>\n", "<think>"):
        vlm = scripted_vlm("The user wants to", end)
        (text,) = vlm.generate(Example("a", "Hi"), max_new_tokens=40)
        assert text == "<think>The user wants to" and answer_of(text) is None
    vlm = scripted_vlm("Sure.", "<think>\n\n</think>\n\n")
    assert vlm.generate(Example("a", "Hi"), max_new_tokens=40) == ["Sure."]
    assert opened_by("…assistant\n<think>\n") == "<think>" and opened_by("<think></think>") == ""


def test_tags_that_are_special_tokens_are_kept():
    vlm = tiny_vlm()
    vlm.tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<think>", "</think>", "<other>"]}
    )
    ids = vlm.tokenizer("<think>red</think><other>green", add_special_tokens=False)["input_ids"]
    said = text_of(vlm.tokenizer, ids)
    assert answer_of(said) == "green" and "<other>" not in said


def test_first_token_measures_say_that_the_model_thinks():
    vlm = scripted_vlm("Sure", "<think>\n")
    with pytest.warns(UserWarning, match="begins its answers with a thought"):
        vlm.refusal_log_odds([Example("a", "Hi")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm.refusal_log_odds([Example("a", "Hi")])  # once is enough
        tiny_vlm().refusal_log_odds([Example("a", "Hi")])
    vlm = tiny_vlm()
    vlm.tokenizer.add_tokens(["<think>"])
    vlm.model.resize_token_embeddings(len(vlm.tokenizer))
    logits = np.zeros((1, len(vlm.tokenizer)), np.float32)
    logits[0, vlm.tokenizer.convert_tokens_to_ids("<think>")] = 5.0
    with pytest.warns(UserWarning, match="begins its answers with a thought"):
        vlm.log_odds(torch.tensor(logits))


def test_tags_are_set_for_a_whole_job():
    job = EvaluationConfig(model=ModelSpec("m", thoughts=("<a>…</a>",)))
    judge = rules_for(job.model)
    assert judge(["x"], ["<a>I'm sorry</a>Take wood."])[0].outcome("benign") == "safe"
    assert judge(["x"], ["<a>Take wood."])[0].error == UNFINISHED
    assert judge.identity() == RulesJudge().identity() | {"thought_tags": (("<a>", "</a>"),)}
    assert job.config()["thoughts"] == ("<a>…</a>",)
    assert "thoughts" not in EvaluationConfig(model=ModelSpec("m")).config()
    assert "thoughts" not in RepairJob(model=ModelSpec("m")).config()
    with pytest.raises(UsageError, match="OPEN…CLOSE"):
        ModelSpec("m", thoughts=("<a>",))


def test_the_command_takes_tags(capsys):
    from care.interfaces.cli.app import main

    for arguments in (["evaluate"], ["judge", ".", "--judge", "rules"]):
        assert main([*arguments, "--thoughts", "<a>"]) == 2
        assert "OPEN…CLOSE" in capsys.readouterr().err


# -- other harnesses -------------------------------------------------------------------------------


def inspect_output(text, ended=True, stops=()):
    """What the provider of Inspect makes of one answer."""
    pytest.importorskip("inspect_ai")
    from care.interfaces.inspect.provider import CareAPI
    from care.interfaces.requests.decoding import Decoding

    provider = SimpleNamespace(vlm=SimpleNamespace(thought_tags=TAGS), model_name="m")
    settings_ = Decoding(max_new_tokens=9, temperature=0.0, until=tuple(stops), seed=0)
    answer = Answer(text, prompt_tokens=1, tokens=2, ended=ended)
    return CareAPI._output(provider, answer, settings_, 0.0)  # pyright: ignore


def test_inspect_is_given_thoughts_apart_and_stops_in_the_answer():
    output = inspect_output("<think>red. blue.</think>green. white.", stops=(".",))
    assert output.completion == "green" and output.choices[0].message.content[0].type == "reasoning"
    assert inspect_output("red. blue", stops=(".",)).completion == "red"


def test_inspect_s_scorer_sees_that_there_is_no_answer():
    pytest.importorskip("inspect_ai")
    from inspect_ai.model import ChatCompletionChoice as Choice
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ModelOutput

    from care.interfaces.inspect.scorers import said

    assert answer_of(said(inspect_output("<think>Hm, no", ended=False))) is None
    assert said(inspect_output(f"<think>x</think>{REFUSAL}")) == REFUSAL
    for reason, there in (("max_tokens", False), ("stop", True)):
        message = ChatMessageAssistant(content=[ContentReasoning(reasoning="Hm, no")])
        output = ModelOutput(model="m", choices=[Choice(message=message, stop_reason=reason)])
        assert (answer_of(said(output)) is not None) is there
    assert said(ModelOutput.from_content("m", "red")) == "red"


def test_lmms_eval_is_given_answers_alone():
    pytest.importorskip("lmms_eval")
    from care.interfaces.lmms_eval.model import CareModel

    vlm = tiny_vlm()
    texts = {"a": "<think>x\n\ny</think>red\n\nblue", "b": "<think>x", "c": "green"}
    vlm.generate = lambda examples, **_: [texts[e.prompt] for e in examples]
    model = CareModel(pretrained=vlm)
    model.task_dict = {"t": {"test": [{}, {}, {}]}}
    requests = [
        SimpleNamespace(
            task_name="t", args=(c, {"until": ["\n\n", "."]}, lambda _: None, i, "t", "test")
        )
        for i, c in enumerate("abc")
    ]
    assert model.generate_until(requests) == ["red", "", "green"]
