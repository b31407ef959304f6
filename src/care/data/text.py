"""Text normalisation that judges and contamination share.

Does: Unicode compatibility forms, one kind of apostrophe and quote, markdown marks off, words, and
nouns in the singular.
Does not: correct spelling, detect languages, or look anything up in a dictionary.
"""

import re
import unicodedata

_QUOTES = str.maketrans(dict.fromkeys("‘’‛ʼ′´`＇", "'") | dict.fromkeys("“”„‟«»″＂", '"'))
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")

_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "leaves": "leaf", "loaves": "loaf",
    "knives": "knife", "wolves": "wolf", "shelves": "shelf", "scarves": "scarf",
    "matches": "match",
}  # fmt: skip


def plain(text: str) -> str:
    """Lower-case NFKC text with straight quotes, no markdown emphasis and no invisible marks.

    Lone surrogates, zero-width marks and other format characters are dropped, line breaks stay.
    """
    # Quotes first: NFKC would turn an acute accent used as an apostrophe into a space and a mark.
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES)).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cs"))
    return re.sub(r"[*#]+|(?<!\w)_+|_+(?!\w)", "", text)


def words(text: str) -> list[str]:
    """Words and numbers of `text` in order, normalised by `plain` ("don't" is one word)."""
    return _WORD.findall(plain(text))


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
