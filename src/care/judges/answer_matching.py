"""Is a short answer right? Reference matching for visual questions and naming.

What the answer *states* is compared with the references, by their kind:

- yes or no, and the letter of an option: as `stated` reads them; where no letter is stated, other
  references (the option's text) decide;
- a number: as `numbers` reads it;
- other text: a reference must occur as whole words, and not only where it is denied ("not red but
  blue", "a car isn't visible"), asked for ("red? No") or one of two ("red or blue"). Both sides are
  compared lower-case, without articles, with number words as digits and with plurals as singulars
  ("cars" = "car"). Parts that <AND> joins must all occur.

An answer that states nothing of the kind isn't right. Limits: an answer that lists every colour
matches all of them; ask questions with short answers. How often this agrees with labels by hand,
by kind: `python -m tools.judges short-answers` in a checkout.
"""

import re
import unicodedata
from collections.abc import Sequence

from care.data.text import plain, singular, words
from care.errors import DataError, UsageError
from care.judges.numbers import NUMBERS, number_of, stated_number
from care.judges.stated import LETTERS, letters_of, stated_yes_no
from care.judges.stated import stated_option as read_option
from care.models.thoughts import answer_of

_OPTION = re.compile("[A-Z]")

_ARTICLES = frozenset({"a", "an", "the"})
_DENIAL = re.compile(r"n't$|^(?:not|no|never|neither|nor|cannot|without|doubt)$")
_NO_DENIAL = frozenset({"only", "just", "merely", "simply", "doubt", "question"})
_CLAUSE = re.compile(r"[.!?;:\n]+|,(?!\d)|\bbut\b")
# After a word, as `answer_words` writes it (no articles, "doe" for "does"): "isn't visible".
_DENIED_AFTER = re.compile(
    r"(?:itself )?(?:(?:(?:is|are|was|were|does|do|did|ca|could)n't|cannot"
    r"|(?:is|are|was|were|doe|do|did|can|could|would) not)"
    r"(?: (?:be|actually|really|clearly|currently|even|anywhere))*"
    r" (?:visible|present|there|here|seen|shown|depicted|pictured|found|detected|right|correct|true"
    r"|it|answer|colou?r|one|case|what|appear|exist|in (?:this |that )?(?:picture|image|photo|scene"
    r"|frame|view))\b"
    r"|(?:is|are|was|were) (?:absent|missing|nowhere|wrong|incorrect|false)\b)"
)
_UNIT = re.compile(r"(?<=\d)(?=(?:[cmk]?m|[mk]?g|m?l|mph|ft|lbs?|oz|px|am|pm|min)\b)")
_AFFIRMED = re.compile(
    r"(?:yes|yeah|yep|yup|definitely|certainly|absolutely|correct|right|sure|indeed|of course"
    r"|probably|exactly|it is$|i think so)\b"
)


def correct(references: Sequence[str], response: str, question: str | None = None) -> bool:
    """Whether `response`, without its thoughts, states one of `references`.

    `question` tells which letters there are. A reference without a letter or digit ("+") must occur
    literally. Raises `UsageError` without references and `DataError` for a blank one.
    """
    if isinstance(references, str) or not references:
        raise UsageError(
            f"references must be a non-empty sequence of strings, got {references!r}; a "
            "question without a reference answer can't be marked."
        )
    if any(not reference.strip() for reference in references):
        raise DataError("A reference answer is blank; remove it from the example.")
    bare = [reference.strip() for reference in references]
    if response.strip() in bare:
        return True
    answer = answer_of(response)
    if any(answer_of(reference) != reference for reference in bare):
        answer = response  # a reference that holds a tag is looked for in all of it
    if answer is None:
        return False
    known = LETTERS if question is None else letters_of(question)
    letters = {
        reference for reference in bare if _OPTION.fullmatch(reference) and reference in known
    }
    if letters and (stated := stated_option(answer, known)) is not None:
        return stated in letters
    yes_no = {reference for reference in bare if plain(reference) in ("yes", "no")}
    if yes_no and (said := stated_yes_no(answer)) is not None:
        return said in map(plain, yes_no)
    numbers = {
        reference: value for reference in bare if (value := number_of(reference)) is not None
    }
    if numbers and stated_number(answer) in numbers.values():
        return True
    others = [r for r in bare if r not in letters and r not in yes_no and r not in numbers]
    return any(_occurs(reference, answer, others) for reference in others)


def stated_option(response: str, letters: str = LETTERS) -> str | None:
    """The letter of the option that a response, without its thoughts, states; see `stated`."""
    answer = answer_of(response)
    return None if answer is None else read_option(answer, letters)


def answer_words(text: str) -> list[str]:
    """Normalised words of `text`: no articles, digits for number words, singulars."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain(text))
    text = re.sub(
        r"(?<=\d)\.(?=\d)", "point", _UNIT.sub(" ", text)
    )  # one word each, "3 cm" = "3cm"
    found = [word.removesuffix("'s") for word in words(text)]
    # An answer can be an article ("a" as a letter); only then articles are kept.
    kept = [word for word in found if word not in _ARTICLES] or found
    return [singular(word) for word in _digits(kept)]


def _digits(tokens: list[str]) -> list[str]:
    result: list[str] = []
    tens = 0  # of a number word like "twenty" that the next word may complete
    for token in tokens:
        value = NUMBERS.get(token)
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


def _occurs(reference: str, answer: str, references: Sequence[str]) -> bool:
    parts = [part for part in reference.split("<AND>") if part.strip()]
    if len(parts) > 1:
        return all(_occurs(part, answer, parts) for part in parts)
    wanted = answer_words(reference)
    if not wanted:
        return reference.strip() in answer
    said = answer_words(answer)
    places = _places(wanted, said)
    if not places or said == wanted:
        return bool(places)
    others = [answer_words(other) for other in references]
    taken_back = 0
    for clause, asked in _clauses(answer):
        taken_back += sum(
            (asked and "?" not in plain(reference))
            or _denied(clause[:place])
            or _DENIED_AFTER.match(" ".join(clause[place + len(wanted) :])) is not None
            or _alternative(clause[:place], clause[place + len(wanted) :], others)
            for place in _places(wanted, clause)
        )
    return len(places) > taken_back


def _clauses(answer: str) -> list[tuple[list[str], bool]]:
    """The words of each clause, and whether it is a question to which what follows says no yes."""
    pieces = _CLAUSE.split(plain(answer))
    marks = [*_CLAUSE.findall(plain(answer)), ""]
    found = [(answer_words(piece), mark) for piece, mark in zip(pieces, marks, strict=True)]
    found = [(said, mark) for said, mark in found if said]
    follow = [*(" ".join(said) for said, _ in found[1:]), ""]
    return [
        (said, "?" in mark and bool(after) and not _AFFIRMED.match(after))
        for (said, mark), after in zip(found, follow, strict=True)
    ]


def _places(wanted: Sequence[str], said: Sequence[str]) -> list[int]:
    """Where the words `wanted` begin in `said`."""
    n = len(wanted)
    return [i for i in range(len(said) - n + 1) if list(said[i : i + n]) == list(wanted)]


def _denied(before: Sequence[str]) -> bool:
    """Whether what follows these words of a clause is denied."""
    if list(before[-2:]) in (["rather", "than"], ["instead", "of"]):
        return True
    for place, word in enumerate(before):
        after = before[place + 1 :]
        if not _DENIAL.search(word) or "except" in after or (after and after[0] in _NO_DENIAL):
            continue
        # "no doubt" says so all the more, "I doubt" doesn't.
        if word != "doubt" or (place and before[place - 1] != "no"):
            return True
    return False


def _alternative(
    before: Sequence[str], after: Sequence[str], references: Sequence[Sequence[str]]
) -> bool:
    """Whether another word that is no reference stands beside it as just as good."""
    if after[:1] == ["or"]:
        return not any(list(after[1 : 1 + len(r)]) == list(r) for r in references)
    if before[-1:] == ["or"]:
        return not any(list(before[-1 - len(r) : -1]) == list(r) for r in references)
    return False
