"""A conversation as HTML: what was asked, what was answered, who decided that and what was edited.

Words of people and of models are escaped and shown as they are, line by line; of Markdown nothing
is made, since a picture that a model names would be fetched. Not here: the page around it (`page`).
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from care.evaluation.monitored import decided
from care.interfaces.chat.answers import Exchange, Thread, Told

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.alarms import Source

_SCOPES = {
    "image": "the pictures'",
    "text": "the words'",
    "decision": "the last one before the answer",
    "response": "the answer's",
    "all": "all",
}
"""Which tokens a scope means."""

_SOURCES: dict[Source, str] = {
    "model": "the model as it was asked",
    "text alone": "the model, asked the text alone",
    "repaired": "begun again, channels closed",
    "refusal": "a refusal in its place",
}
"""Where an answer comes from."""


def bare_html(thread: Thread) -> str:
    """What the bare model was asked and answered."""
    return _thread(thread, None)


def repaired_html(thread: Thread, defense: Defense) -> str:
    """The same under a defense, with who decided it and what was edited."""
    return _thread(thread, defense)


def failure_html(message: str) -> str:
    """Why a request can't be answered."""
    return f'<p class="care-failure" role="alert">{escape(message)}</p>'


def _thread(thread: Thread, defense: Defense | None) -> str:
    if not thread:
        return '<div class="care-thread"><p class="care-quiet">Nothing was asked yet.</p></div>'
    return f'<div class="care-thread">{"".join(_exchange(each, defense) for each in thread)}</div>'


def _exchange(each: Exchange, defense: Defense | None) -> str:
    pictures = "".join(
        f'<img src="{picture.thumbnail}" alt="a picture of the request">'
        for picture in each.pictures
    )
    words = f"<p>{escape(each.text)}</p>" if each.text else ""
    asked = f'<div class="care-asked">{pictures}{words}</div>'
    return f"{asked}{''.join(_answer(each.told, defense))}"


def _answer(told: Told, defense: Defense | None) -> Iterator[str]:
    for taken in told.withdrawn:
        why = f": {taken.alarm.shown}" if taken.alarm else ""
        was = "What was shown of it is taken back" if taken.shown else "Nothing was shown of it"
        yield f'<p class="care-withdrawn">An answer was withdrawn{escape(why)}. {was}.</p>'
    if told.failure:
        yield failure_html(told.failure)
    elif told.text or told.answer is not None:
        kind = f" care-{told.answer.source.replace(' ', '-')}" if told.answer else ""
        yield f'<div class="care-said{kind}">{escape(told.text) or "(an empty answer)"}</div>'
    else:
        yield '<p class="care-quiet care-wait">…</p>'
    if told.answer is not None and defense is not None:
        yield f'<div class="care-why">{_decision(told, defense)}{_edits(told, defense)}</div>'


def _decision(told: Told, defense: Defense) -> str:
    """Where the answer comes from, and which monitors decided that."""
    assert told.answer is not None
    source, alarms = told.answer.source, told.answer.alarms
    if alarms:
        scores, _, followed = decided(alarms, source).rpartition("; ")
        why = f'<b class="care-alarm">{escape(scores)}</b>: {escape(followed)}.'
    elif getattr(defense, "monitors", ()):
        why = "No monitor decided it."
    else:
        why = "It has no monitors."
    return f'<p><span class="care-source">{_SOURCES[source]}</span> {why}</p>'


def _edits(told: Told, defense: Defense) -> str:
    """The sites and tokens that were edited."""
    if not told.edits:
        weights = getattr(defense, "touches", "") == "weights"
        said = "Its weights are changed." if weights else "No activation was edited."
        return f"<p>{said}</p>"
    rows = "".join(
        f"<tr><td><code>{edits.site}</code></td><td>{edits.tokens}</td>"
        f"<td>{escape(', '.join(_SCOPES.get(s, s) for s in edits.scopes) or 'as it sees fit')}</td>"
        f"<td>{100 * edits.change:.0f} %</td></tr>"
        for edits in told.edits
    )
    names = "<th>edited at</th><th>tokens</th><th>which</th><th>by, of its length</th>"
    return f"<table><tr>{names}</tr>{rows}</table>"
