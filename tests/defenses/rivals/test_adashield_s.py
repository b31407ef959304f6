"""AdaShield-S: the prompt, and nothing else of a request."""

from __future__ import annotations

from dataclasses import replace

from care.data.example import Example
from care.defenses.rivals.adashield_s import PROMPT, AdaShieldS
from kit.tiny import picture


def test_the_prompt_comes_first_and_says_what_the_paper_asks_for():
    example = Example("e", "Do it.", (picture(),), goal="g", kind="malicious", opening="Sure")
    found = AdaShieldS().rewritten(example)
    assert found.prompt == f"{PROMPT}\nInstruction: Do it."
    for rule in ("picture", "step by step", "instruction", "I am sorry", "follow the instruction"):
        assert rule in PROMPT
    assert replace(found, prompt="Do it.") == example
