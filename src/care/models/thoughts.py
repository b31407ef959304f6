"""What a model says before its answer: thoughts between tags, told apart from the answer.

    <think>The user wants …</think>I'm sorry, but I can't.
    The user wants … </think> I'm sorry, but I can't.      a chat template had opened the thoughts
    <think>The user wants                                  no end: there is no answer

Thoughts are recognised where an answer begins, and before a closing tag that nothing opened; an
answer that mentions a tag in its middle, or any tag in code or quotes, stays whole. Several
thoughts in a row are all left out. What wraps the answer itself (<answer>, a solution's or a box's
marks) is taken off.

Stages, as LLaVA-CoT writes them (<SUMMARY>, <CAPTION>, <REASONING>), are thoughts up to
<CONCLUSION>. Channels, as gpt-oss writes them, are thoughts up to the channel `final`; they are
also told where a decoder has dropped their special tokens ("analysisThe user wants
…assistantfinalI'm sorry").

Tags of other models can be set wherever answers are read. Not here: whether a thought is harmful.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from care.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Tags = tuple[tuple[str, str], ...]
"""Pairs of what opens thoughts and what closes them."""

TAGS: Tags = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
)
"""Tags that are known without being set; case and a space before > don't matter."""

UNFINISHED = "the model's thoughts have no end, so there is no answer to judge"
"""Why an answer isn't judged."""

_WRAPPERS = (
    ("<answer>", "</answer>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<CONCLUSION>", "</CONCLUSION>"),
)
_CHANNEL_MARKS = {"<|channel|>", "<|message|>", "<|start|>", "<|channel>", "<channel|>"}
_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)
_BLANK = r"[\s\ufeff\u200b-\u200d\u2060]*"
_HEADER = (
    _BLANK + r"(?:<\|(?:start|im_start|start_header_id)\|>\s*)?"
    r"(?:assistant\b\s*(?:<\|end_header_id\|>|:)?\s*(?=[<\[◁]))?"
)
_STAGES = re.compile(_BLANK + r"<SUMMARY>.*?</SUMMARY>\s*<CAPTION>", re.DOTALL | re.IGNORECASE)
_LAST_STAGE = re.compile(r"(?=<CONCLUSION>)", re.IGNORECASE)
_FINAL = re.compile(r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final\b[^<]*<\|message\|>")
_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*\w+")
_ENDS = re.compile(r"<\|(?:end|return)\|>\s*$")
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z\"'“])")
_BARE_FINAL = re.compile(r"assistant\s*final(?![a-z])")
_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`", re.DOTALL)
_QUOTES = "\"'`“”‘’«»"


@dataclass(frozen=True)
class SplitAnswer:
    """What a model said, in two parts."""

    answer: str | None
    """The answer as it is judged; None where the thoughts have no end."""
    thoughts: str | None = None
    """The thoughts with their tags, or None without any."""


def read(text: str, tags: Tags = TAGS) -> SplitAnswer:
    """The thoughts and the answer of `text`; reading the answer again changes nothing."""
    rest, thoughts = text, ""
    while True:
        after = _after_thoughts(rest, tags)
        if after is None:
            return SplitAnswer(None, thoughts + rest)
        thoughts += rest[: len(rest) - len(after)]
        inside = _unwrapped(after)
        if inside == rest:
            break
        rest = inside
    return SplitAnswer(text if rest == text else rest.strip(), thoughts.strip() or None)


def answer_of(text: str, tags: Tags = TAGS) -> str | None:
    """The answer of `text` without thoughts; None where they have no end."""
    return read(text, tags).answer


def outside_thoughts(stop: Callable[[str], bool], tags: Tags = TAGS) -> Callable[[str], bool]:
    """An early stop that sees the answer alone, and isn't asked while the model still thinks."""

    def asked(text: str) -> bool:
        answer = answer_of(text, tags)
        return answer is not None and stop(answer)

    return asked


def known_tags(more: Sequence[str]) -> Tags:
    """`TAGS` and those that a user writes as OPEN…CLOSE; UsageError for another form."""
    found = []
    for pair in more:
        opening, _, closing = pair.replace("...", "…").partition("…")
        if not opening.strip() or not closing.strip() or "…" in closing:
            raise UsageError(
                f"Tags around thoughts are written OPEN…CLOSE, as in '<think>…</think>', got "
                f"{pair!r}."
            )
        found.append((opening.strip(), closing.strip()))
    return (*TAGS, *found)


# -- tokens ----------------------------------------------------------------------------------------


def tag_ids(tokenizer: Any, tags: Tags = TAGS) -> frozenset[int]:
    """Special tokens of a tokenizer that make up tags; whoever decodes answers must keep them."""
    marks = {mark for pair in (*tags, *_WRAPPERS) for mark in pair} | _CHANNEL_MARKS
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
    return frozenset(place for token, place in named if token in marks)


def text_of(tokenizer: Any, tokens: Sequence[int], tags: Tags = TAGS) -> str:
    """The text of an answer's tokens, without special tokens other than those of tags."""
    kept = tag_ids(tokenizer, tags)
    if not kept.intersection(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True).strip()
    dropped = set(tokenizer.all_special_ids) - kept
    return tokenizer.decode([token for token in tokens if token not in dropped]).strip()


def opened_by(prompt: str, tags: Tags = TAGS) -> str:
    """The tag with which a prompt has opened the thoughts of the answer to come, or nothing."""
    end = prompt[-80:].rstrip().casefold()
    return next((opening for opening, _ in tags if end.endswith(opening.casefold())), "")


def warn_of_first_token(tokenizer: Any, name: str, tags: Tags, prompt: str, logits: Tensor) -> None:
    """Warn if `prompt`, as its template writes it, or the likeliest token of `logits` (…,
    vocabulary) after it opens a thought: the first token then isn't that of the answer."""
    pieces = {
        piece[0]: opening
        for opening, _ in tags
        if (piece := tokenizer(opening, add_special_tokens=False)["input_ids"][:1])
    }
    # A piece like "<" begins other text as well, and an unknown token begins everything.
    opening = {
        place
        for place, tag in pieces.items()
        if len(text := tokenizer.decode([place]).strip()) > 1 and tag.startswith(text)
    }
    likeliest = set(logits.detach().argmax(dim=-1).flatten().tolist())
    if opened_by(prompt, tags) or opening & likeliest:
        warnings.warn(
            f"{name} begins its answers with a thought, so what is read off the first token "
            "(refusal log-odds, and sites, neurons and repairs chosen by them) is about the "
            "thought and says little about refusing.",
            stacklevel=1,
        )


# -- inside ----------------------------------------------------------------------------------------


def _after_thoughts(text: str, tags: Tags) -> str | None:
    """What follows the first thought of `text`, all of it without one; None without an end."""
    if _CHANNEL.match(text):
        finals = list(_FINAL.finditer(text))
        return text[finals[-1].end() :] if finals else None
    if _BARE_CHANNEL.match(text):
        finals = list(_BARE_FINAL.finditer(text))
        return text[finals[-1].end() :] if finals else None
    if _STAGES.match(text):
        last = _LAST_STAGE.search(text)
        return text[last.end() :] if last else None
    for opening, closing in tags:
        if begun := _pattern(_HEADER + _tag(opening)).match(text):
            end = _end(text, begun.end(), opening, closing)
            return None if end is None else text[end:]
    return _after_lonely(text, tags)


def _end(text: str, start: int, opening: str, closing: str) -> int | None:
    """Where the thought ends that was opened before `start`."""
    depth, last = 1, None
    for found in _pattern(f"{_tag(opening)}|(?P<closing>{_tag(closing)})").finditer(text, start):
        if found["closing"] is None:
            depth += 1
            continue
        depth -= 1
        if depth == 0:
            return found.end()
        if last is None or not _mentioned(text, found):
            last = found.end()
    return last  # a thought that mentions its own tag opens more than it closes


def _after_lonely(text: str, tags: Tags) -> str:
    """What follows a closing tag that nothing before it opens, outside of code and quotes."""
    for opening, closing in tags:
        found = _pattern(_tag(closing)).search(text)
        if found is None or _pattern(_tag(opening)).search(text, 0, found.start()):
            continue
        if not _mentioned(text, found):
            return text[found.end() :]
    return text


def _mentioned(text: str, tag: re.Match[str]) -> bool:
    """Whether a tag stands in quotes or in a line of code, and so is spoken of."""
    before, after = text[: tag.start()], text[tag.end() :]
    if before[-1:] in _QUOTES and after[:1] in _QUOTES and before and after:
        return True
    alone = not before.rpartition("\n")[2].strip() and not after.partition("\n")[0].strip()
    return not alone and any(
        code.start() < tag.start() < code.end() for code in _CODE.finditer(text)
    )


def _unwrapped(text: str) -> str:
    """The answer alone; one that was cut lacks the closing mark. A box in a sentence is bold."""
    text = _ENDS.sub("", text)
    box = _BOX.search(text)
    if box is not None:
        alone = not text[: box.start()].strip() and not text[box.end() :].strip()
        text = box[1] if alone else _BOX.sub(r"**\1**", text)
    for opening, closing in _WRAPPERS:
        if begun := _pattern(r"\s*" + re.escape(opening)).match(text):
            return _pattern(re.escape(closing)).split(text[begun.end() :], maxsplit=1)[0]
    return text


def _tag(mark: str) -> str:
    """A pattern for a tag as it is written by a model, "<think >" too."""
    return re.escape(mark[:-1]) + r"\s*>" if mark.endswith(">") else re.escape(mark)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)
