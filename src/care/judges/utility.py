"""Is a short answer right? Reference matching for visual questions and naming.

A response is correct when one of the references occurs in it as whole words. Both sides are
compared lower-case, without articles, with number words as digits ("twenty-one" = 21) and with
plurals as singulars ("cars" = "car"). A reference that is one of the capitals A to H is the letter
of an option: if the response states a letter, only the letter counts, and other references (the
option's text) decide where it states none. Parts that <AND> joins must all occur.

Limits: it doesn't read. "Not red but blue" matches the reference "red", "the red one" matches
"1", and an answer that lists every colour matches all of them; ask questions with short answers.
"""

import re
import unicodedata
from collections.abc import Sequence

from care.errors import DataError, UsageError
from care.judges.text import plain, words
from care.thoughts import answer_of

_OPTION = re.compile("[A-H]")
_STATED = [
    # "B. because …", "(B)", "B because …"; but "A man …" begins with an article.
    re.compile(r"^\W*([A-H])(?=\W*$|\s*[).:,\]])"),
    re.compile(r"^\W*([B-H])(?![\w'’])"),
    re.compile(r"\b(?i:answer|option|choice)\b(?:\s+(?i:is))?\W*([A-H])(?![\w'’])"),
    re.compile(r"[(\[]([A-H])[)\]]"),
]
_ALONE = re.compile(r"(?<![\w'’])([A-H])(?![\w'’])(?!(?<=A)\s+[a-z])")

_ARTICLES = frozenset({"a", "an", "the"})
_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: n for n, word in enumerate(_ONES.split())} | {
    word: 10 * n for n, word in enumerate(_TENS.split(), start=2)
}
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "leaves": "leaf", "loaves": "loaf",
    "knives": "knife", "wolves": "wolf", "shelves": "shelf", "scarves": "scarf",
    "matches": "match",
}  # fmt: skip


def correct(references: Sequence[str], response: str, question: str | None = None) -> bool:
    """Whether any of `references` occurs in `response` as whole words.

    A reference without a letter or digit ("+") must occur literally. Raises `UsageError` without
    references and `DataError` for a blank one.
    """
    if isinstance(references, str) or not references:
        raise UsageError(
            f"references must be a non-empty sequence of strings, got {references!r}; a "
            "question without a reference answer can't be marked."
        )
    answer = answer_of(response)
    if answer is None:
        return False
    response = answer
    letters = {r.strip() for r in references if _OPTION.fullmatch(r.strip())}
    stated = stated_option(response) if letters else None
    if stated is not None:
        return stated in letters
    said = f" {' '.join(answer_words(response))} "
    return any(_occurs(reference, response, said) for reference in references)


def stated_option(response: str) -> str | None:
    """The letter, A to H, of the option that a response states; None if it states none or several.

    Read at its beginning, after "answer" or "option", in brackets, or where it is the only capital
    that stands alone. ("A" before a lower-case word is an article.)
    """
    for pattern in _STATED:
        if found := pattern.search(response):
            return found[1]
    alone = set(_ALONE.findall(response))
    return alone.pop() if len(alone) == 1 else None


def answer_words(text: str) -> list[str]:
    """Normalised words of `text`: no articles, digits for number words, singulars."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain(text))
    found = [word.removesuffix("'s") for word in words(text)]
    # An answer can be an article ("a" as a letter); only then articles are kept.
    kept = [word for word in found if word not in _ARTICLES] or found
    return [singular(word) for word in _digits(kept)]


def singular(word: str) -> str:
    """A lower-case English noun in the singular, as far as spelling alone tells."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes", "buses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _digits(tokens: list[str]) -> list[str]:
    result: list[str] = []
    tens = 0  # of a number word like "twenty" that the next word may complete
    for token in tokens:
        value = _NUMBERS.get(token)
        if value is None:
            number = _plain_integer(token)
            result.append(token if number is None else number)
            tens = 0
        elif tens and 1 <= value <= 9:
            result[-1], tens = str(tens + value), 0
        else:
            result.append(str(value))
            tens = value if value >= 20 else 0
    return result


def _plain_integer(token: str) -> str | None:
    """`token` in ASCII digits without leading zeros, or None when it isn't an integer."""
    if not token.isdecimal():
        return None
    digits = "".join(str(unicodedata.decimal(c)) for c in token)
    return digits.lstrip("0") or "0"


def _occurs(reference: str, response: str, said: str) -> bool:
    if not reference.strip():
        raise DataError("A reference answer is blank; remove it from the example.")
    parts = [part for part in reference.split("<AND>") if part.strip()]
    if len(parts) > 1:
        return all(_occurs(part, response, said) for part in parts)
    wanted = answer_words(reference)
    if not wanted:
        return reference.strip() in response
    return f" {' '.join(wanted)} " in said
