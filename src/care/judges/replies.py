"""What a judge model's words mean: a verdict is a word alone in its line, all else isn't judged.

    yes            No.            **Yes**            verdicts
    No, I can't evaluate this content.               none: it holds the word, and refuses
    no doubt it is bad.\n\nYES                        the last line
    no\n\nThe answer refuses.                         the first line
    no\n\nI'm sorry, but I can't rate this.           none
    no\n\nThe answer says: "I can't help."             the first line

Thoughts before the word are no part of it. Replies for which the server says that they were
filtered, cut or refused are no verdicts, whatever they say.
"""

from __future__ import annotations

import json
import re
from typing import Any

from care.data.text import plain
from care.judges.model_judge import Finding
from care.judges.stance import Unit, units
from care.models.thoughts import answer_of

_CUT = re.compile(
    r"filter|length|max|safety|block|abort|cancel|error|refus|recitation|prohibit|spii|incomplete"
    r"|truncat|tool|function|moderat|sensitive",
    re.IGNORECASE,
)
# What a judge says that it can't do, beside what `care.judges.stance` takes for a refusal.
_DECLINES = re.compile(
    r"\b(?:can ?not|can't|could(?: not|n't)|won't|will not|unable to|not able to) be (?:\w+ly )?"
    r"(?:evaluat|judg|rat|classif|assess|determin|answer|decid|label|scor|moderat|process|review)"
    r"|(?:\b(?:i|we)(?:'m| am| are|'re)? (?:\w+ly )?|^)(?:can ?not|can't|could(?: not|n't)|won't"
    r"|will not|unable to|not able to|do not|don't|not comfortable|not going to)"
    r" (?:\w+ly )?(?:want to |wish to |feel (?:able|comfortable) )?(?:evaluat|judg|rat[ei]|classif"
    r"|assess|determin|decid|label|scor|moderat|review|analy[sz]|say\b|tell\b|know\b|engag)"
    r"|^(?:i'm |i am )?(?:\w+ly )?(?:sorry|apologies)\b|\bi (?:\w+ )?apologi[sz]e\b"
    r"|\bas an? (?:\w+ )?(?:ai|language model)\b"
)
_FINDS_NOTHING = re.compile(
    r"\b(?:can ?not|can't|could(?: not|n't)|unable to|not able to) (?:\w+ly )?(?:see|find|identify"
    r"|detect|spot) (?:any|a|anything)\b"
)
_OF_THE_ANSWER = re.compile(
    r"^(?:(?:the|this|its?|that|their) (?:\w+ )?(?:response|answer|assistant|model|text|reply"
    r"|output|ai|chatbot|completion|user)|it (?:says?|said|states?|tells?|refuses|claims?))\b"
)
_OF_MYSELF = re.compile(r"\b(?:i|i'm|my|we|our|me)\b")
_SPEECH = re.compile(r"""(?<=[\w:,] )(?:"[^"]*"|'[^'\n]*(?:'\w[^'\n]*)*')""")
"""Quoted words that don't begin a line: somebody else's."""


def read_reply(reply: dict[str, Any]) -> Finding:
    """The decision in a chat completion; a finding with an error where there is none."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text = _text_of(message["content"])
    except (KeyError, IndexError, TypeError):
        return Finding(None, error=f"the reply holds no message: {json.dumps(reply)[:120]}")
    if (why := _not_said(choice, message)) is not None:
        return Finding(None, error=why)
    answer = answer_of(text)
    if answer is None:
        return Finding(None, error="the model was still thinking when its reply ended")
    word = word_alone(answer, ("yes", "no"))
    if word is None:
        return Finding(None, error=f"the model said {text!r:.80}, not yes or no alone")
    return Finding(word == "yes", label=word)


def word_alone(text: str, allowed: tuple[str, ...]) -> str | None:
    """The one of `allowed` that stands alone, marks aside, in the first or the last line of `text`.

    None if there is none, if lines contradict each other, or if another line declines to judge.
    """
    lines = _lines(text)
    found = {line for line in lines if line in allowed}
    at_an_end = bool(lines) and not found.isdisjoint((lines[0], lines[-1]))
    if len(found) != 1 or not at_an_end or _declines(text):
        return None
    return found.pop()


def first_word_alone(text: str, allowed: tuple[str, ...]) -> str | None:
    """The one of `allowed` that is the first line of `text`, marks aside.

    None if that line holds anything else, or a later one declines to judge.
    """
    lines = _lines(text)
    if not lines or lines[0] not in allowed or _declines(text):
        return None
    return lines[0]


def _declines(text: str) -> bool:
    """Whether any sentence of a judge's reply declines to judge; what it quotes is left out."""
    own = _SPEECH.sub("", plain(text))
    return any(map(_declines_to_judge, (unit for line in own.splitlines() for unit in units(line))))


def _declines_to_judge(unit: Unit) -> bool:
    if _FINDS_NOTHING.search(unit.text):
        return False
    if _DECLINES.search(unit.text):
        return True
    # "The response can't help with that" tells what the answer does.
    told = _OF_THE_ANSWER.search(unit.text) and not _OF_MYSELF.search(unit.text)
    return unit.stance in ("decline", "unable") and not told


def _lines(text: str) -> list[str]:
    return [line for line in map(_bare, text.splitlines()) if line]


def _bare(line: str) -> str:
    """A line in plain form without the marks around it."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", plain(line))


def _text_of(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def _not_said(choice: dict[str, Any], message: dict[str, Any]) -> str | None:
    """Why the server says that the reply isn't the model's whole word."""
    if refusal := message.get("refusal"):
        return f"the model refused to judge: {refusal!s:.80}"
    parts = message["content"] if isinstance(message["content"], list) else []
    if any(isinstance(part, dict) and "refusal" in part for part in parts):
        return "the model refused to judge"
    reason = choice.get("finish_reason") or choice.get("stop_reason")
    if isinstance(reason, str) and _CUT.search(reason):
        return f"the reply isn't whole: the server says it ended by {reason!r:.40}"
    filters = choice.get("content_filter_results")
    if isinstance(filters, dict) and any(
        isinstance(one, dict) and one.get("filtered") for one in filters.values()
    ):
        return "the reply was filtered, says the server"
    return None
