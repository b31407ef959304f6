"""Text normalisation that every judge shares.

Does: Unicode compatibility forms, one kind of apostrophe and quote, markdown marks off, words.
Does not: correct spelling, detect languages, or look anything up in a dictionary.
"""

import re
import unicodedata

_QUOTES = str.maketrans(dict.fromkeys("‘’‛ʼ′´`＇", "'") | dict.fromkeys("“”„‟«»″＂", '"'))
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


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
