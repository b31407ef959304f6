"""Self-reminder: the sentences, and nothing else of a request."""

from __future__ import annotations

from dataclasses import replace

from care.data.example import Example
from care.defenses.base import reads_undefended
from care.defenses.rivals.self_reminder import SelfReminder
from kit.tiny import picture


def test_a_request_stands_between_the_sentences():
    example = Example("e", "Do it.", (picture(),), goal="g", kind="malicious", opening="Sure")
    found = SelfReminder().rewritten(example)
    before, asked, after = found.prompt.split("\n")
    assert asked == "Do it." and "responsible" in before and after.startswith("Remember")
    assert replace(found, prompt="Do it.") == example
    assert not reads_undefended(SelfReminder()) and SelfReminder().touches == "request"
