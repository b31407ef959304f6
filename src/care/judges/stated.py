"""What a short answer states: yes or no, or the letter of an option; None where it states neither.

It is read, not looked for. A yes or no counts where it stands alone in its clause ("Yes, there is
no doubt", "so no", "the answer is yes"); answers that say both state neither. Of letters

1. what is declared counts, the last one: "the answer is C", "final answer: c", "\\boxed{C}",
   "**C**", "I choose C", "C is correct", "so it is (C)"; a letter that is merely named ("option C
   is Rome") or asked for ("is it C?") isn't declared;
2. then the one option of a list that is called right ("A. London - no. B. Paris - yes");
3. then the letter that the answer begins with, then the only letter in it.

Letters that are discarded ("A is wrong", "not A", "(A) can't be") aren't stated, and neither are
several of them ("A or B"). "A" before a word is an article, lower-case letters count where they are
declared or begin the answer.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import zip_longest

from care.data.text import plain

LETTERS = "ABCDEFGH"
"""Letters of options where a question doesn't tell."""

# -- yes and no ------------------------------------------------------------------------------------

_YES, _NO = ("yes", "yeah", "yep", "yup"), ("no", "nope", "nah")
_EITHER = "|".join((*_YES, *_NO))
_CLAUSE = re.compile(
    r"[.!;:,\n()\[\]{}–—…>|]|\s-\s|\bbut\b|\bso\b|\bbecause\b|\b(?:al)?though\b|\bsince\b"
)
_FILLERS = (
    r"(?:(?:well|so|hmm+|oh|ok|okay|sure|actually|indeed|and|then|therefore|thus|hence|in short"
    r"|of course|definitely|absolutely|certainly|clearly|wait|or|rather|answer|final|the|my|is"
    r"|correct|probably|simply|just|surely)\s+)*"
)
_ALONE = re.compile(rf"{_FILLERS}(?P<word>{_EITHER})(?:\s+(?:indeed|sir|again))?")
_CONTINUED = re.compile(
    rf"{_FILLERS}(?:(?P<yes>{'|'.join(_YES)})\s+(?!or\b|and\b|no\b)"
    rf"|(?P<no>{'|'.join(_NO)})\s+(?:it|there|he|she|they|this|that|the|i|we|you|not)\b)"
)
_DECLARED = re.compile(
    r"(?:\banswer|\bresponse|\bconclusion|\bverdict|\bresult|\bi would|\bi'd|\bi will|\bi'll|\bi"
    r"|\bit|\bit's|\bthat|\bthat's)\b"
    rf"[^?]{{0,80}}?(?:\bis|\bbe|\bsay|\banswer|\bguess|\bthat|'s)\s+(?:an?\s+|the\s+)?"
    rf"(?P<word>{_EITHER})(?:\s+from me)?$"
)
_LONGEST = 160  # characters of a clause in which yes or no is declared
_DENIES = re.compile(r"\bnot\b|n't\b|\bnever\b|\bcan ?not\b")
_NOTHING_SEEN = re.compile(
    r"(?:there(?:'s|\s+(?:is|are|was|were))|i\s+(?:can\s+)?(?:see|find|detect|notice))"
    r"\s+no\s+(?P<a>.+)"
    r"|no\s+(?P<b>.+)"
)
_NOBODY = re.compile(
    r"(?:no[ -]one|nobody|nothing|none(?:\s+of\s+\w+)?)\s+(?:is|are|was|were|can\s+be)\s+"
    r"(?:\w+\s+){0,2}?(?:in|on|at|there|here|visible|present|seen|shown|depicted|\w+ing)\b"
)
_IDIOM = re.compile(
    r"(?:\w+\s+)?(?:doubt|idea|problem|matter|wonder|clue|one|question|worries|way|answer|reason"
    r"|information|evidence|telling)\b"
)


def stated_yes_no(answer: str) -> str | None:
    """ "yes" or "no", as an answer (without thoughts) states it, or None."""
    text = re.sub(r"\\(?:boxed|text\w*|mathrm|mathbf)\s*\{", "\n", plain(answer))
    # What is asked again isn't answered by it.
    text = re.sub(r"(?<![^.!?\n])[^.!?\n]*\?", "\n", text).replace('"', "")
    clauses = [re.sub(r"^[\W_]+|[\W_]+$", "", clause) for clause in _CLAUSE.split(text)]
    clauses = [clause for clause in clauses if clause]
    said = {word for clause in clauses if (word := _said(clause)) is not None}
    if not said:
        seen = [found for clause in clauses[:2] if (found := _NOTHING_SEEN.fullmatch(clause))]
        if any(map(_NOBODY.match, clauses[:2])):
            return "no"
        if seen and not _IDIOM.match(seen[0]["a"] or seen[0]["b"]):
            return "no"
    return said.pop() if len(said) == 1 else None


def _said(clause: str) -> str | None:
    found = _ALONE.fullmatch(clause)
    if found is None and not _DENIES.search(clause):
        found = _DECLARED.search(clause[-_LONGEST:])
    if found is not None:
        return "yes" if found["word"] in _YES else "no"
    if found := _CONTINUED.match(clause):
        return "yes" if found["yes"] else "no"
    return None


# -- letters ---------------------------------------------------------------------------------------

_MARKS = r"[\s*_\"'“”‘’(\[{$:]*"
_NAMED = r"(?:the\s+)?(?:(?:option|answer|choice|letter)\s+)?"
_DECLARATIONS = (
    # "the answer is C", "answer: C", "the answer to the question must be C", "Answer\nC"; not
    # "option C", which only names it
    r"\b(?:answer|option|choice|letter|conclusion|solution)\b(?:\s+(?:to|of|for)\s[^.;:\n]{0,40}?)?"
    r"[\s,*_]*(?:(?:then|therefore|here|thus|clearly)[\s,]*)?"
    r"(?:\bis|=|:|-|–|\bwould\s+be|\bshould\s+be|\bmust\s+be|\bhas\s+to\s+be|\bwill\s+be"
    r"|\n|(?<=\*\*)|(?<=final\sanswer\s)|(?<=my\sanswer\s))[\s,*_:]*"
    r"(?:(?:clearly|definitely|most\s+likely|probably|therefore|thus|indeed)\s+)?" + _NAMED,
    r"\b(?:i|i'd|i'll|i\s+would|i\s+will)\s+(?:choose|chose|pick|select|prefer|say|go\s+with|go\s+for"
    r"|opt\s+for|vote\s+for)\s+" + _NAMED,
    r"\b(?:correct|right|best|true)\s+(?:one|answer|option|choice)?\s*(?:is|:)\s*" + _NAMED,
)
_WEAK_DECLARATIONS = (
    r"\b(?:it|this|that)(?:\s+is|'s|’s|\s+must\s+be|\s+has\s+to\s+be|\s+should\s+be|\s+would\s+be)\s+"
    + _NAMED,
    r"\b(?:so|therefore|thus|hence|leaving|leaves|actually|finally|(?:more|most)\s+likely)[,:\s]+(?:it\s+is\s+|it's\s+)?"
    + _NAMED,
)
_LESS = (
    r"(?:least|worst|second|third|next|other|another|alternative|incorrect|wrong"
    r"|false|less|almost|nearly|partly|partially|hardly|never|un\w+)"
)
_RIGHT = (
    r"\s+(?:(?:is|must\s+be|has\s+to\s+be|would\s+be)\s+(?:clearly\s+|indeed\s+)?(?:the\s+)?|the\s+)"
    rf"(?!not\b|in|{_LESS}\b)(?:\w+\s+)?(?:correct|right|true|best|better|answer|more\s+likely"
    r"|most\s+likely)\b"
    r"|\s+(?:fits|matches|suits|works|looks|seems)\s+(?:\w+\s+)?(?:best|better|right|correct)\b"
)
_MENTIONED = re.compile(
    rf"\b{_LESS}\s+(?:\w+\s+){{0,2}}?(?:answer|option|choice|letter|one)\s*"
    rf"(?:is|was|would\s+be|:|=|-|–)?[\s*_:]*{_NAMED}{_MARKS}$",
    re.IGNORECASE,
)
"""Before a letter that is named as less than the answer: "the second best option is"."""
_ASKED = re.compile(r"[)\]*_\"'”’]*\s*\?")
_CHINESE = r"(?:答案|正确选项|正確選項|(?<!不)应?[选選](?:择|擇)?)(?:应该|應該)?(?:是|为|為|:)?\s*"
_VERDICT = re.compile(
    r"\w.*?(?:(?:\s[-–—]+\s*|[:,(=→]\s*|\b(?:is|looks|seems)\s+(?:the\s+)?)"
    r"(?:yes|correct|right|true)\b(?:\s+(?:one|answer|option))?|[✅✓✔☑])[^\w❌✗✘]*$",
    re.IGNORECASE,
)
"""An option of a list, with its text, that is called right."""
_CALLED_RIGHT = re.compile(r"yes\b|correct\b|right\b|true\b|[✅✓✔☑]", re.IGNORECASE)
_SIGN = re.compile(r"\W")
_HEDGES = (
    r"(?:(?:possibly|perhaps|maybe|probably|even|also|either|the|it|is|could|might|be|(?:final\s+)?"
    r"answer|option|choice|letter)[\s:*_]+)*"
)
_DISCARDED_BEFORE = (
    r"(?:\bnot|n't|n’t|\bcannot|\bneither|\bnor|\brather\s+than|\binstead\s+of|\brul(?:e|ing)\s+out"
    r"|\beliminat\w+|\bexclud\w+|\bdiscard\w*|\breject\w*|\bexcept|\bother\s+than|\bunlike"
    r"|\b(?:wrong|incorrect|false)\s+(?:answer|option|choice|letter|one)s?\s*(?:is|are|:|=)?)"
    r"(?:\s+(?:be|the|either|both|options?|answers?|choices?|letters?))*\s*"
)
_WRONG = (
    r"\s*(?:(?:both|all|each)\s+)?(?:"
    r"(?:is|are|was|were|seems?|looks?|sounds?|appears?)\s+(?:\w+\s+){0,2}?(?:wrong|incorrect|false"
    r"|not|impossible|implausible|unlikely|excluded|eliminated|plausible|possible|tempting|out|too)\b"
    r"|(?:is|are|do|does|can|could|would|wo|has|have)n?['’]t\b|cannot\b|can\s+not\b"
    r"|can\s+be\s+(?:ruled\s+out|excluded|eliminated|discarded|rejected)\b"
    r"|do(?:es)?\s+not\b)"
)
_NEAR = 120
"""Characters beside a letter in which it is looked whether the letter is discarded."""


def stated_option(answer: str, letters: str = LETTERS) -> str | None:
    """The letter of the option that an answer (without thoughts) states; None for none or several.

    `letters` are those that the question has, capitals.
    """
    text = unicodedata.normalize("NFKC", answer)
    signs = _signs(letters)
    declared = sorted(
        (match.start("letter"), match.end("letter"))
        for pattern in signs.declared
        for match in pattern.finditer(text)
        if not signs.discarded(text, *match.span("letter"))
        and not _mentioned(text, *match.span("letter"))
    )
    if declared:
        return signs.one(text, *declared[-1])
    if right := signs.called_right(text):
        return right.pop() if len(right) == 1 else None
    if begun := signs.beginning.match(text):
        place = begun.span("letter")
        if signs.discarded(text, *place) or len(signs.listed(text)) > 1:
            return signs.only(text)
        return signs.one(text, *place)
    return signs.only(text)


def letters_of(question: str) -> str:
    """Capitals that mark the options of a question, "ABCD"; all of `LETTERS` where it has none."""
    found = re.findall(r"(?:^|\n|(?<=\s))\(?([A-Z])[.):]\)?(?=\s)", question)
    run = ""
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        if letter not in found:
            break
        run += letter
    return run if len(run) > 1 else LETTERS


def _mentioned(text: str, start: int, end: int) -> bool:
    """Whether the letter there is asked for, or named as less than the answer."""
    before = text[max(0, start - _NEAR) : start]
    return bool(_ASKED.match(text[end : end + _NEAR]) or _MENTIONED.search(before))


class _Signs:
    """The patterns for one set of letters."""

    def __init__(self, letters: str) -> None:
        low = letters.lower()
        capital, any_case = f"[{letters}]", f"[{letters}{low}]"
        end = r"(?![\w'’])"
        # A lower-case "a", and a capital one in a sentence, may be an article.
        strict = rf"(?P<letter>(?:{capital}|(?!a\s+\w){any_case})){end}"
        weak = rf"(?P<letter>(?!A\s+[a-z]){capital}){end}"
        more = r"[)\]*_\"'”’.:]*\s*(?:,?\s*(?:and|or|nor|&)\b|,|/|&|或者?|还是|和|、)"
        more += rf"\s*[(\[*_\"'“]*{capital}{end}"
        closed, opened = r"[)\]*_\"'”’.:]*", r"[(\[*_\"'“]*"
        hedged = rf"{closed}\s*,?\s*\bor\s+(?i:{_HEDGES}){opened}"
        both = rf"{closed}\s*,?\s*\band\s+(?i:{_HEDGES}){opened}{capital}(?=[\W_]*(?:$|\n|[.;]))"
        self.more = re.compile(rf"{more}|{hedged}{capital}{end}|{both}")
        self.either = re.compile(rf"(?<![\w'’]){capital}{hedged}$")
        self.declared = [
            *(re.compile(f"(?i:{lead}){_MARKS}{strict}") for lead in _DECLARATIONS),
            *(re.compile(f"(?i:{lead}){_MARKS}{weak}") for lead in _WEAK_DECLARATIONS),
            # "it is b" or "no, b", and no more
            re.compile(
                rf"(?i:{_WEAK_DECLARATIONS[0]}|\b(?:no|wait|sorry|correction)[,:]\s+){_MARKS}(?P<letter>{any_case})(?=[\W_]*(?:$|\n))"
            ),
            re.compile(rf"{_CHINESE}{_MARKS}(?P<letter>{capital})(?![A-Za-z0-9])"),
            re.compile(rf"(?<![\w'’])(?P<letter>{any_case})[)\]*_\"'”’]*(?i:{_RIGHT})"),
            re.compile(rf"\\boxed\s*\{{[\s$]*(?:\\\w+\s*\{{)?\s*\(?(?P<letter>{any_case})(?!\w)"),
            re.compile(
                rf"(?:\*\*|__)\s*[(\[]?(?P<letter>{capital})[)\]]?[.):,]?(?:\s*(?:\*\*|__)|\s)"
            ),
        ]
        self.beginning = re.compile(
            rf"[\W_]*(?:\d+[.)]\s*)?(?:(?i:option|choice|answer|letter)\s+)?(?P<letter>"
            rf"{capital}(?=[\W_]*$|\s*[).:,/\]–-]|\s*\n|['\"’”*]|\s+(?:or|and)\s+{capital}{end})"
            rf"|(?!A){capital}{end}"
            rf"|{any_case}(?=[\W_]*$|[).:]\s|[)\]]))"
        )
        joined = r"\s*(?:,|and|or|nor|&|/)\s*(?:and\s+|or\s+|not\s+)?"
        chain = rf"[(\[*_\"'“]*{capital}[)\]*_\"'”’.]*{joined}"
        self.before = re.compile(rf"(?i:{_DISCARDED_BEFORE})(?:{chain})*[(\[*_\"'“]*$")
        self.after = re.compile(
            rf"[)\]*_\"'”’]*(?:\s*(?:,|and|or|nor|&|/)+\s*(?:and\s+|or\s+)?[(\[*_\"'“]*{capital}"
            rf"[)\]*_\"'”’]*)*(?i:{_WRONG})"
        )
        verb = r"(?:is|was|and|or|nor|not|but|rather|because|since|as|seems|looks|has)\b"
        self.lone = re.compile(rf"(?<![\w'’])({capital}){end}(?!(?<=A)\s+(?!{verb})[a-z])")
        self.judged = re.compile(
            rf"(?<![\w'’])\(?({capital})\)?\s*[.:=–-]?\s*"
            rf"((?i:{_CALLED_RIGHT.pattern}|no\b|wrong\b|incorrect\b|false\b)|[❌✗✘])"
        )
        self.marker = re.compile(rf"(?<![\w'’])\(?({capital})[.):]\)?\s+\w")

    def discarded(self, text: str, start: int, end: int) -> bool:
        """Whether the letter there is one that the answer rules out."""
        before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
        return bool(self.before.search(before) or self.after.match(after))

    def one(self, text: str, start: int, end: int) -> str | None:
        """The letter there, unless another is named beside it as just as good."""
        beside = self.more.match(text[end : end + _NEAR])
        if self.either.search(text[max(0, start - _NEAR) : start]):
            return None
        if beside is not None and not self.discarded(
            text, end + beside.end() - 1, end + beside.end()
        ):
            return None
        return text[start:end].upper()

    def only(self, text: str) -> str | None:
        """The only letter in the text that isn't discarded."""
        found = {
            m[1]
            for m in self.lone.finditer(text)
            if not self.discarded(text, *m.span(1)) and not _ASKED.match(text, m.end(1))
        }
        return found.pop() if len(found) == 1 else None

    def called_right(self, text: str) -> set[str]:
        """Letters of a list of options that are called right there."""
        marks = list(self.marker.finditer(text))
        found: set[str] = set()
        for mark, after in zip_longest(marks, marks[1:]):
            until = min(len(text) if after is None else after.start(), mark.end() + _NEAR)
            said = re.split(r"[.;\n]", text[mark.end() - 1 : until], maxsplit=1)[0]
            if _VERDICT.match(said) and not _DENIES.search(said):
                found.add(mark[1])
        if found:
            return found
        judged = dict(self.judged.findall(text))
        # "A. yes B. no" may be the options themselves.
        if len(judged) < 3 and not any(_SIGN.match(word) for word in judged.values()):
            return set()
        return {letter for letter, word in judged.items() if _CALLED_RIGHT.match(word)}

    def listed(self, text: str) -> set[str]:
        """Letters that the text lists as options."""
        return {match[1] for match in self.marker.finditer(text)}


@cache
def _signs(letters: str) -> _Signs:
    return _Signs(letters)
