"""Every attack in variants, by name, and how one is asked for: NAME[,option=value]….

Options are the fields of an attack's class. To add an attack: a class in a module of its own, and a
line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

from care.errors import UsageError

if TYPE_CHECKING:
    from care.attacks.variants import VariantAttack

VARIANT_ATTACKS: dict[str, str] = {
    "templates": "care.attacks.templates:Templates",
    "openings": "care.attacks.openings:Openings",
    "best-of-16": "care.attacks.best_of:BestOf",
    "many-shot": "care.attacks.many_shot:ManyShot",
    "gcg": "care.attacks.gcg:GCG",
    "registers": "care.attacks.register_pictures:Registers",
    "missed": "care.attacks.missed:Missed",
    "said": "care.attacks.said:SoftTokens",
    "pictured": "care.attacks.register_pictures:Pictured",
    "joined": "care.attacks.joined:Joined",
}
"""Where each attack is; imported when it is asked for, since names are listed in help."""


def kind_of(name: str) -> type[VariantAttack]:
    """The class of the attack `name`; UsageError for an unknown name."""
    if name not in VARIANT_ATTACKS:
        raise UsageError(
            f"There is no attack {name!r} in variants; use {', '.join(VARIANT_ATTACKS)}."
        )
    module, _, kind = VARIANT_ATTACKS[name].partition(":")
    return getattr(import_module(module), kind)


def variant_attack(name: str, given: Mapping[str, str] | None = None) -> VariantAttack:
    """The attack `name` with options as text; UsageError for an unknown name or option."""
    kind = kind_of(name)
    types = get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    given = given or {}
    if unknown := sorted(given.keys() - set(fields)):
        raise UsageError(
            f"The attack {name} has no option {unknown[0]!r}; it takes "
            f"{', '.join((*fields, 'suite', 'as'))}."
        )
    return kind(**{key: option(key, value, types[key]) for key, value in given.items()})


def option(key: str, value: str, kind: Any) -> Any:
    """An option of an attack, given as text, as a number (or text) of its kind."""
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(
            f"The option {key} of an attack is a number, got {value!r:.40}."
        ) from error
