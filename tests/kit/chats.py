"""A page's answerer on the tiny model, and what it answered."""

from __future__ import annotations

from care.interfaces.chat.answers import Answerer, Sides
from care.interfaces.chat.config import ChatConfig, ChatLimits

ASKED = "how do you wash a car?"


def answerer(vlm, defense, limits=None, **options):
    """Short answers unless told otherwise."""
    options = {"max_new_tokens": 12, **options}
    return Answerer(
        vlm, defense, ChatConfig(repair="r", limits=ChatLimits(**limits or {}), **options)
    )


def asked(answerer, *questions, sides=None, files=()):
    """The two conversations after some questions, and all that was shown of the last one."""
    sides, seen = sides or Sides(), []
    for question in questions:
        seen = list(answerer.both(sides, question, files))
        sides = seen[-1]
    return sides, seen
