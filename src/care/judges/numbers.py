"""Which number does a short answer state? Digits, number words ("twenty-one"), signs and units.

    stated_number("There are three circles.")           3
    stated_number("It isn't 3 but 4.")                  4
    stated_number("2 dogs and 3 cats, so 5 in total")   5
    stated_number("3 dogs, 2 of them brown")            3
    stated_number("1, 2, 3. There are 3.")              3
    stated_number("3 or 4")                             None

A number that is declared ("the answer is", "in total", "=") counts, the last one; otherwise the one
number of the first sentence that has any. Numbers that are denied, alternatives, ranges and limits
("at least 3") state none, and "one" is a number only where it isn't a pronoun ("the red one").
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from care.data.text import plain

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: n for n, word in enumerate(_ONES.split())} | {
    word: 10 * n for n, word in enumerate(_TENS.split(), start=2)
}
"""Number words below a hundred that are one word."""
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1000000}

_WORD = "|".join((*NUMBERS, *_SCALES))
_NUMBER = re.compile(
    rf"""(?<![\w.])(?<!\d[,/:]) (?:
        (?P<digits>[-−]? (?:(?:\d{{1,3}}(?:,\d{{3}})+ | \d+) (?:\.\d+)? | \.\d+))
            (?!\w|[.,:/]\d)
      | (?P<unit>[-−]? \d+ (?:\.\d+)?) (?=(?:cm|mm|km|m|kg|g|ml|l)\b)
      | (?P<words>(?:{_WORD})(?:[\s-]+(?:and\s+)?(?:{_WORD}))*) (?!\w)
    )""",
    re.VERBOSE,
)
_STEP = re.compile(r"\s*(?:,\s*(?:and\s+)?|\.\.\.\s*|…\s*)")
_PARTS = re.compile(
    rf"(?<=\w)\s*(?:[,(]|[-–—]\s|\bincluding\b|\bof\s+which\b|\bwith\b(?=[^,]{{0,20}}\bof\b))\s*"
    rf"(?:including\s+|with\s+|and\s+|of\s+wh\w+\s+)?(?:\d+|{_WORD})\s*"
    r"(?:of\s+(?:them|these|those|which|whom)\b|(?<=\s)(?:is|are|in|on|at|being)\b"
    r"|(?<=\s)(?:\w+\s+){0,2}(?:ones?|of\s+(?:them|which|whom))\b).*",
    re.DOTALL,
)
"""What is said of a part of what was counted: ", 2 of them brown"."""
_LATEX = re.compile(r"\\(?:boxed|text\w*|mathrm|mathbf)\s*\{|[${}]|\\[(\[\])]")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SENTENCE = re.compile(r"(?<!\d)[.!?;]+(?!\d)|[.!?;]+(?=\s|$)|\n+")

# "one" after these words counts something.
_COUNTING = frozenset(
    """is are be was were see saw count counted only just exactly answer total has have contains
    shows show there and or not than least most to s of""".split()  # noqa: SIM905
)
_DENIED = re.compile(
    r"(?:\bnot|n't|\bnever|\brather than|\binstead of|\bneither|\bnor)"
    r"(?:\s+(?:be|been|see|count|just|exactly|any|a|the|there))*\s+$"
)
_LIMIT = re.compile(
    r"\b(?:more|less|fewer|greater|other) than\s+$|\bat (?:least|most)\s+$"
    r"|\b(?:over|under|above|below|up to|nearly|almost)\s+$"
)
_BETWEEN = re.compile(r"\s*(?:or|to|/|,|-|–|—|and)\s*(?:a\s+|an\s+|maybe\s+|perhaps\s+)?")
_DECLARED_BEFORE = re.compile(
    r"(?:(?<!\bin )\b(?:answer|total|result|sum|number|count)\b[^.;!?\n]{0,40}?"
    r"(?:\bis|\bare|:|=|\bequals)"
    r"|=|\bin total,?\s+(?:there\s+)?(?:is|are)|\b(?:make|makes|making)"
    r"|\b(?:so|therefore|thus|hence),?(?:\s+(?:there|it|we|i)?\s*(?:is|are|have|see|count))?)"
    r"\s*(?:exactly|about|just|only|:)?\s*[$(\"']*$"
)
_NEAR = 80  # characters beside a number in which it is looked what is said of it
_DECLARED_AFTER = re.compile(r"^(?:\s+[\w-]+){0,2}\s+(?:in total|in all|altogether|overall)\b")


class _Found(NamedTuple):
    start: int
    end: int
    value: float


def stated_number(answer: str) -> float | None:
    """The number that an answer (without thoughts) states; None if it states none or several."""
    if boxed := _BOXED.findall(answer):
        answer = boxed[-1]
    text = _LATEX.sub(" ", plain(answer))
    declared = [one for one in _numbers(text) if _declared(text, one) and not _open(text, one)]
    if declared:
        return declared[-1].value
    for sentence in _SENTENCE.split(_counted_up(text)):
        before = re.split(r":(?=\s)", sentence, maxsplit=1)[0]
        if _numbers(before):
            sentence = before  # "3 circles: 1 red and 2 blue"
        sentence = _PARTS.sub("", sentence)
        found = [one for one in _numbers(sentence) if not _denied(sentence, one)]
        if found:
            several = len({one.value for one in found}) > 1
            return None if several or any(_open(sentence, one) for one in found) else found[0].value
    return None


def _counted_up(text: str) -> str:
    """`text` without the numbers of a count from one ("1, 2, 3"), but the last where it ends so."""
    found = _numbers(text)
    for first, one in enumerate(found):
        if one.value != 1:
            continue
        last = first
        while (
            last + 1 < len(found)
            and found[last + 1].value == found[last].value + 1
            and _STEP.fullmatch(text[found[last].end : found[last + 1].start])
        ):
            last += 1
        if last - first > 1 and re.match(r"\s*(?:[.!;:,…]|$)", text[found[last].end :]):
            more = any(other.start > found[last].end for other in found)
            until = found[last].end if more else found[last].start
            return text[: one.start] + text[until:]
    return text


def number_of(text: str) -> float | None:
    """The number that `text` is, nothing else; None for other text."""
    bare = re.sub(r"^[\s\"'(\[]+|[\s\"')\].,;!?]+$", "", _LATEX.sub(" ", plain(text)))
    match = _NUMBER.fullmatch(bare)
    return None if match is None else _value(match)


def _numbers(text: str) -> list[_Found]:
    found = (
        _Found(match.start(), match.end(), _value(match))
        for match in _NUMBER.finditer(text)
        if not _pronoun(text, match)
    )
    return [_unsigned(text, one) for one in found]


def _unsigned(text: str, one: _Found) -> _Found:
    """A dash that joins two numbers or words is no sign, and the word minus is one."""
    before = _before(text, one)
    if re.search(r"(?:^|[^\d\s]\s+)(?:minus|negative)\s+$", before):
        return _Found(one.start, one.end, -one.value)
    if one.value < 0 and re.search(r"[\w)]$|\d\s$", before):
        return _Found(one.start + 1, one.end, -one.value)
    return one


def _value(match: re.Match[str]) -> float:
    digits = match["digits"] or match["unit"]
    if digits is not None:
        shown = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in digits)
        return float(shown.replace(",", "").replace("−", "-"))
    total, part = 0, 0
    for word in re.findall(_WORD, match["words"]):
        if word in NUMBERS:
            value = NUMBERS[word]
            # "two three" are two numbers; only tens are completed by ones.
            part = part + value if part % 100 == 0 or (part % 10 == 0 and value < 10) else value
        elif word == "hundred":
            part = 100 * (part or 1)
        else:
            total, part = total + _SCALES[word] * (part or 1), 0
    return float(total + part)


def _pronoun(text: str, match: re.Match[str]) -> bool:
    """Whether the match is "one" in place of a noun: "the red one", "no one"."""
    if match[0] != "one":
        return False
    near = text[max(0, match.start() - _NEAR) : match.start()]
    before = re.findall(r"[^\W\d_]+", near.rpartition("\n")[2])
    closed = re.search(r"[.!?;:,(]\s*$", near)
    if re.match(r"\s+of\b", text[match.end() :]):
        return True  # "one of them"
    return bool(before) and not closed and before[-1] not in _COUNTING


def _before(text: str, one: _Found) -> str:
    return text[max(0, one.start - _NEAR) : one.start]


def _denied(text: str, one: _Found) -> bool:
    return _DENIED.search(_before(text, one)) is not None


def _open(text: str, one: _Found) -> bool:
    """Whether a number is a limit, a part of a range, or one of several."""
    if _LIMIT.search(_before(text, one)):
        return True
    start = max(0, one.start - _NEAR)
    for match in _NUMBER.finditer(text, start, one.end + _NEAR):
        first, last = sorted([(one.start, one.end), match.span()])
        between = text[first[1] : last[0]]
        if first != last and _BETWEEN.fullmatch(between) and _value(match) != one.value:
            return True
    return False


def _declared(text: str, one: _Found) -> bool:
    after = text[one.end : one.end + _NEAR]
    return bool(_DECLARED_BEFORE.search(_before(text, one)) or _DECLARED_AFTER.search(after))
