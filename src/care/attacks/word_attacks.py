"""Every attack in words, by name, and how one is asked for: NAME[,option=value]….

Options are the fields of an attack's class. To add an attack: a class in a module of its own, and a
line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from care.attacks.best_of import BestOf
from care.attacks.gcg import GCG
from care.attacks.joined import Joined
from care.attacks.many_shot import ManyShot
from care.attacks.openings import Openings
from care.attacks.templates import Templates
from care.attacks.words import WordAttack
from care.errors import UsageError

WORD_ATTACKS: dict[str, type[WordAttack]] = {
    kind.name: kind for kind in (Templates, Openings, BestOf, ManyShot, GCG, Joined)
}
"""The attacks in words, by name."""


def word_attack(name: str, given: Mapping[str, str] | None = None) -> WordAttack:
    """The attack `name` with options as text; UsageError for an unknown name or option."""
    if name not in WORD_ATTACKS:
        raise UsageError(f"There is no attack {name!r} in words; use {', '.join(WORD_ATTACKS)}.")
    kind = WORD_ATTACKS[name]
    types = get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    given = given or {}
    if unknown := sorted(given.keys() - set(fields)):
        raise UsageError(
            f"The attack {name} has no option {unknown[0]!r}; it takes "
            f"{', '.join((*fields, 'suite', 'as'))}."
        )
    return kind(**{key: _read(key, value, types[key]) for key, value in given.items()})


def _read(key: str, value: str, kind: Any) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(
            f"The option {key} of an attack is a number, got {value!r:.40}."
        ) from error
