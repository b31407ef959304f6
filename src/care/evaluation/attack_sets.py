"""The attacks that `--adaptive all` and `--adaptive all,quick` stand for.

Pictures: universal and for each request, within 16, 32 and 64 levels and unconstrained, for
openings in every register, for answers that monitors miss, with their word in the loss, and all of
these on the picture that holds the goal. A picture for each request is made for 5 or 10 of them
alone, which is what keeps the whole within an evening. Words: every attack there is, and what works
of all of them joined.
They are text as somebody would write it (`config`), so that a run's manifest can be asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

from care.errors import UsageError

ALL = "all"
"""Stands for every kind of attack; `all,quick` for a small part of each."""

_GOALS = "suite=pictured-goal"
_EVERY = (
    *(f"registers,kappa={k},n=1,steps=60,restarts=1,as=universal-{k}" for k in (16, 32, 64)),
    "registers,steps=60,restarts=1",
    *(f"registers,each=1,limit=5,kappa={k},n=1,steps=40,restarts=1,as=each-{k}" for k in (16, 64)),
    "registers,each=1,limit=10,kappa=32,n=1,steps=40,restarts=1,as=each-32",
    "registers,each=1,limit=5,n=1,steps=40,restarts=1,as=each-unconstrained",
    "missed,steps=80,restarts=1",
    "missed,kappa=32,steps=80,restarts=1,as=missed-32",
    "said,steps=60,restarts=1",
    *(f"pictured,limit=5,kappa={k},steps=40,restarts=1,as=pictured-{k}" for k in (16, 64)),
    "pictured,limit=10,steps=40,restarts=1",
    "pictured,limit=5,kappa=0,steps=40,restarts=1,as=pictured-unconstrained",
    "pictured,limit=5,n=8,steps=40,restarts=1,as=pictured-registers",
    f"missed,{_GOALS},each=1,limit=10,kappa=32,n=1,steps=50,restarts=1,as=pictured-missed",
    f"said,{_GOALS},each=1,limit=5,kappa=32,steps=40,restarts=1,as=pictured-said",
    "templates",
    "openings",
    "best-of-16",
    "many-shot",
    "gcg",
    "joined",
)
_QUICK = (
    "registers,kappa=32,n=1,steps=40,restarts=1,as=universal-32",
    "registers,n=4,steps=40,restarts=1",
    "missed,n=1,steps=40,restarts=1",
    "pictured,limit=5,steps=20,restarts=1",
    f"missed,{_GOALS},each=1,limit=5,kappa=32,n=1,steps=20,restarts=1,as=pictured-missed",
    "templates,n=8",
    "openings",
    "best-of-16,samples=4,as=best-of-4",
    "joined",
)


def expanded(adaptive: Sequence[str]) -> list[str]:
    """The attacks one by one, in place of `all`; UsageError for an option that it hasn't."""
    found: list[str] = []
    for wanted in adaptive:
        name, _, option = wanted.partition(",")
        if name.strip() != ALL:
            found.append(wanted)
            continue
        if option.strip() not in ("", "quick"):
            raise UsageError(f"The attack {ALL} takes the option quick alone, got {option!r:.40}.")
        found += _QUICK if option.strip() else _EVERY
    return found
