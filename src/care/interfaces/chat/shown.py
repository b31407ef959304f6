"""A conversation as HTML: what was asked, what was answered, who decided that and what was edited.

Words of people and of models are escaped and shown as they are, line by line; of Markdown nothing
is made, since a picture that a model names would be fetched. Not here: the page around it (`page`).
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from care.evaluation.monitored import decided
from care.interfaces.chat.answers import ChatTurn, Reply, Thread

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.alarms import Source

_SCOPES = {
    "image": "of the pictures",
    "text": "of the words",
    "decision": "last before the answer",
    "response": "of the answer",
    "all": "all",
}
"""Which tokens a scope means."""

_SOURCES: dict[Source, str] = {
    "model": "The model's own answer",
    "text alone": "Of the text alone",
    "plain": "Refused when asked plainly",
    "repaired": "Begun again with the unsafe channels closed",
    "refusal": "A refusal in the answer's place",
}
"""Where an answer comes from that no monitor decided."""


def bare_html(thread: Thread) -> str:
    """What the bare model was asked and answered."""
    return _thread("Bare", thread, None)


def repaired_html(thread: Thread, defense: Defense) -> str:
    """The same under a defense, with who decided it and what was edited."""
    return _thread("Repaired", thread, defense)


def failure_html(message: str) -> str:
    """Why a request can't be answered."""
    return f'<p class="care-failure" role="alert">{escape(message)}</p>'


def _thread(name: str, thread: Thread, defense: Defense | None) -> str:
    shown = "".join(_turn(each, defense) for each in thread)
    shown = shown or '<p class="care-quiet">Nothing was asked yet.</p>'
    return f'<h2>{name}</h2><div class="care-thread">{shown}</div>'


def _turn(each: ChatTurn, defense: Defense | None) -> str:
    pictures = "".join(
        f'<img src="{picture.thumbnail}" alt="a picture of the request">'
        for picture in each.pictures
    )
    words = f"<p>{escape(each.text)}</p>" if each.text else ""
    asked = f'<div class="care-asked">{pictures}{words}</div>'
    return f"{asked}{''.join(_answer(each.told, defense))}"


def _answer(told: Reply, defense: Defense | None) -> Iterator[str]:
    for taken in told.withdrawn:
        why = f" ({taken.alarm.shown})" if taken.alarm and told.answer is None else ""
        was = "what was shown of it is taken back" if taken.shown else "nothing of it was shown"
        yield f'<p class="care-withdrawn">An answer was withdrawn{escape(why)}; {was}.</p>'
    if told.failure:
        yield failure_html(told.failure)
    elif told.text or told.answer is not None:
        kind = f" care-{told.answer.source.replace(' ', '-')}" if told.answer else ""
        yield f'<div class="care-said{kind}">{escape(told.text) or "(an empty answer)"}</div>'
    else:
        yield '<p class="care-quiet care-wait">…</p>'
    if told.answer is not None and defense is not None:
        yield f'<div class="care-why">{_decision(told, defense)}{_edits(told, defense)}</div>'


def _decision(told: Reply, defense: Defense) -> str:
    """Where the answer comes from, and which monitors decided that."""
    assert told.answer is not None
    source, alarms = told.answer.source, told.answer.alarms
    if alarms:
        scores, _, followed = decided(alarms, source).rpartition("; ")
        return f'<p><b class="care-alarm">{escape(scores)}</b>: {escape(followed)}.</p>'
    watched = getattr(defense, "monitors", ())
    return f"<p>{_SOURCES[source]}; {'no monitor decided it' if watched else 'not monitored'}.</p>"


def _edits(told: Reply, defense: Defense) -> str:
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
    names = "<th>edited at</th><th>tokens</th><th>which</th><th>changed by</th>"
    return f"<table><tr>{names}</tr>{rows}</table>"
