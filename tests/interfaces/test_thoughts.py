"""Thoughts of a model in other harnesses and on the command line: the answer is told apart."""

from types import SimpleNamespace

import pytest

from care.interfaces.cli.app import main
from care.models.thoughts import TAGS, answer_of
from care.models.vlm import Answer
from kit.tiny import tiny_vlm

REFUSAL = "I'm sorry, but I can't help with that."


def test_the_command_takes_tags(capsys):
    for arguments in (["evaluate"], ["judge", ".", "--judge", "rules"]):
        assert main([*arguments, "--thoughts", "<a>"]) == 2
        assert "OPEN…CLOSE" in capsys.readouterr().err


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
