"""The prompt templates of published judges: fetched where the judge is, hashed, never retyped.

A judge's figures hold for the prompt it was trained with, and copies of these prompts in other
projects differ from one another. So none is shipped here. In this order a template comes from

1. a text file that the user names,
2. the judge's own model card: the text in triple quotes, in its code, that has a place for the
   request and one for the answer and no other,

and its SHA-256 is recorded with every run. Chat templates of guard models come with their
tokenizers and are hashed in the same way.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from care.errors import DataError, DownloadError
from care.runs.reading import read_text

GOAL_NAMES = ("behavior", "forbidden_prompt", "instruction", "goal")
"""Names under which templates have a place for the request."""
ANSWER_NAMES = ("generation", "response")
"""Names under which templates have a place for the answer."""

CARD = "README.md"

_LITERAL = re.compile(r"'''(?:\\.|(?!''').)*'''|\"\"\"(?:\\.|(?!\"\"\").)*\"\"\"", re.DOTALL)
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Template:
    """A prompt with one place for the request and one for the answer."""

    text: str
    """The prompt, with `{behavior}` and `{generation}` or names like them."""
    source: str
    """Where it comes from."""

    def __post_init__(self) -> None:
        if not _is_template(self.text):
            raise DataError(
                f"The template from {self.source} has the places {sorted(_places(self.text))}; it "
                f"needs one of {', '.join(GOAL_NAMES)} and one of {', '.join(ANSWER_NAMES)}, in "
                "curly brackets, and no other."
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the text in UTF-8, in hexadecimal."""
        return text_digest(self.text)

    def fill(self, goal: str, response: str) -> str:
        """The prompt; curly brackets in the goal or the answer stay as they are."""

        def value(match: re.Match[str]) -> str:
            if match[1] in GOAL_NAMES:
                return goal
            return response if match[1] in ANSWER_NAMES else match[0]

        return _PLACE.sub(value, self.text)


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_template(path: str | Path) -> Template:
    """The template in a text file, as it stands; DataError if it can't be read or is none."""
    return Template(read_text(path, "template"), str(path))


def card_template(model: str, revision: str | None = None) -> Template:
    """The template in the model card of `model`, a name on the Hub or a folder.

    Raises DownloadError if there is no card to be had, DataError unless exactly one text in it is
    such a template.
    """
    card = _card(model, revision)
    found = list(dict.fromkeys(filter(_is_template, _literals(card))))
    if len(found) != 1:
        raise DataError(
            f"The card of {model} holds {len(found)} prompt templates, not one; save the official "
            "one to a text file and name it with template=FILE."
        )
    return Template(found[0], f"{model}/{CARD}")


def _card(model: str, revision: str | None) -> str:
    path = Path(model) / CARD
    try:
        if not Path(model).is_dir():
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(model, CARD, revision=revision)
        return read_text(path, "model card")
    except (OSError, ValueError) as error:  # the hub's own errors are among them
        reason = str(error).strip().split("\n")[0]
        raise DownloadError(
            f"The card of {model}, which holds its prompt, could not be read ({reason}); name a "
            "text file that holds the official prompt with template=FILE."
        ) from error


def _literals(card: str) -> list[str]:
    """The texts in triple quotes, unescaped as Python does."""
    found = []
    for match in _LITERAL.finditer(card):
        try:
            found.append(ast.literal_eval(match[0]))
        except (SyntaxError, ValueError):
            continue  # quotes in prose
    return [text for text in found if isinstance(text, str)]


def _places(text: str) -> set[str]:
    return set(_PLACE.findall(text))


def _is_template(text: str) -> bool:
    """One place of each kind, and none for anything else, such as a context."""
    places = _places(text)
    goals = places & set(GOAL_NAMES)
    answers = places & set(ANSWER_NAMES)
    return len(goals) == len(answers) == 1 and places == goals | answers
