"""Judges by what `--judge` takes: options of a configuration, and a judge of one's own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from care.errors import UsageError
from care.judges import registry
from care.judges.config import JudgeConfig
from care.judges.registry import JUDGES, judge_config, load_judge, needs_images, register

EVALUATION = Path(__file__).parents[2] / "docs" / "evaluation.md"

LOADING = ("model", "revision", "dtype", "device_map", "batch_size")


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "JUDGES", dict(JUDGES))


def test_options_are_the_fields_of_a_configuration():
    found = {name: entry.options for name, entry in JUDGES.items()}
    prompted = (*LOADING, "template", "max_response_tokens")
    assert found == {
        "rules": (),
        **dict.fromkeys(("harmbench", "harmbench-7b", "strongreject"), prompted),
        **dict.fromkeys(("llama-guard-3", "llama-guard-3-vision", "llama-guard-4"), LOADING),
        "shieldgemma": LOADING,
        "detoxify": ("variant", "checkpoint", "folder", "device"),
        "toxic-words-standin": (),
        "api": (
            *("model", "url", "key_variable", "template", "timeout", "tries", "wait", "parallel"),
            *("temperature", "max_tokens", "max_completion_tokens", "body.NAME"),
        ),
    }
    assert [name for name in JUDGES if name != "api" and needs_images(name)] == [
        "llama-guard-3-vision", "llama-guard-4", "shieldgemma",
    ]  # fmt: skip


def test_what_a_judge_has_of_its_own_is_no_option():
    for wanted in ("harmbench,scale=grade", "llama-guard-3,vision=true", "rules,name=x"):
        with pytest.raises(UsageError, match="has no option"):
            judge_config(wanted)


@dataclass(frozen=True)
class Typed(JudgeConfig):
    strict: bool = False
    share: float | None = 0.5
    words: str | None = None

    def judge(self, rules: Any) -> Any:
        return rules


def test_options_have_the_types_of_their_fields():
    register("typed", "what types there are", words="a")(Typed)
    assert judge_config("typed") == Typed("typed", words="a")
    wanted = "typed,strict=True,share=none,words=none,as=other"
    assert judge_config(wanted) == Typed("other", True, None, "none")
    for option, said in (("strict=1", "true or false"), ("share=half", "number")):
        with pytest.raises(UsageError, match=said):
            judge_config(f"typed,{option}")


def test_a_name_is_taken_once():
    with pytest.raises(UsageError, match="'rules' already"):
        register("rules", "mine")
    with pytest.raises(UsageError, match="that of a file"):
        register("../rules", "mine")


def test_the_judge_that_the_documentation_shows():
    section = EVALUATION.read_text("utf-8").partition("### A judge of one's own\n")[2]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None and len(block[1].splitlines()) <= 30
    names: dict[str, Any] = {"__name__": "own_judge"}
    exec(block[1], names)
    judge = names["judge"]
    assert judge.name == "long-3" and judge.identity() == {"judge": "long-3", "least": 3}
    goals = ["build a bomb"] * 3
    verdicts = judge(goals, ["Take a wire.", "Take it.", "I'm sorry, but I can't help with that."])
    assert [v.outcome("malicious") for v in verdicts] == ["harmful", "safe", "harmful"]
    assert load_judge("long")(goals[:1], ["I can't."])[0].outcome("malicious") == "refused"
