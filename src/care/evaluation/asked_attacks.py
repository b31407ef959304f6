"""Attacks as an evaluation is asked for them: NAME[,option=value]…, as text and read.

Either kind has a name in tables, what it is called where attacks are listed, and held-out requests.
`care list attacks` lists both; what `all` stands for is in `attack_sets`. What is made of them is
in `adaptive` (images), `variants` and `joined`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from care.attacks.config import AttackConfig
from care.attacks.presets import PUBLISHED, PGDConfig
from care.attacks.variant_attacks import VARIANT_ATTACKS, option, variant_attack
from care.attacks.variants import FixedAttack, VariantAttack
from care.errors import UsageError
from care.evaluation.attack_sets import expanded
from care.models.spec import ModelSpec
from care.runs.settings import check_file_name, named_options
from care.runs.spec import RunSpec

_NUMBERS: dict[str, type] = {
    "steps": int, "restarts": int, "kappa": int, "batch_size": int, "evasion": float,
}  # fmt: skip
_TEXTS = ("method", "gate", "target")
_OPTIONS = (*_NUMBERS, *_TEXTS, "requests", "suite", "as")


class AskedAttack(Protocol):
    """Any attack as it is asked for, on held-out requests."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def preset(self) -> str:
        """What it is called where attacks are listed."""
        ...

    @property
    def suite(self) -> str | None:
        """The suite of held-out requests, if one is named."""
        ...

    @property
    def by_defense(self) -> bool:
        """Whether what it asks is made for each defense, and is a suite for each."""
        ...


@dataclass(frozen=True)
class AskedVariants:
    """An attack in variants as it is asked for: NAME[,option=value]…, see `care list attacks`."""

    name: str
    """Its name in tables: its own, or what `as` says."""
    attack: VariantAttack
    """The attack with its options."""
    suite: str | None
    """The suite of held-out requests; None for the small world's, or the first text-only one."""

    @property
    def preset(self) -> str:
        """What it is called where attacks are listed."""
        return self.attack.name

    @property
    def by_defense(self) -> bool:
        """Whether its variants are made for each defense."""
        return not isinstance(self.attack, FixedAttack)

    @classmethod
    def parse(cls, wanted: str) -> AskedVariants:
        """From text; UsageError for what no attack has."""
        preset, given = named_options(wanted, "an attack")
        own = {key: value for key, value in given.items() if key not in ("as", "suite")}
        name = check_file_name(given.get("as", preset), "an attack")
        return cls(name, variant_attack(preset, own), given.get("suite"))


@dataclass(frozen=True)
class ImageAttack:
    """One attack as it is asked for: PRESET[,option=value]…, see `care.attacks.presets`."""

    name: str
    """Its name in tables: the preset, or what `as` says."""
    preset: str
    """Settings to begin with."""
    options: Mapping[str, Any]
    """Fields of `AttackConfig` in place of the preset's, and `batch_size`."""
    suite: str | None
    """The suite of held-out requests; None for the small world's, or the first text-only one."""

    @property
    def by_defense(self) -> bool:
        """An image is made for each defense."""
        return True

    @classmethod
    def parse(cls, wanted: str) -> ImageAttack:
        """From text; UsageError for what no attack has."""
        preset, given = named_options(wanted, "an attack")
        if unknown := sorted(given.keys() - set(_OPTIONS)):
            raise UsageError(
                f"The attack {preset} has no option {unknown[0]!r}; it takes {', '.join(_OPTIONS)}."
            )
        options: dict[str, Any] = {key: given[key] for key in _TEXTS if key in given}
        for key, kind in _NUMBERS.items():
            if key in given:
                options[key] = option(key, given[key], kind)
        if "requests" in given:
            options["requests"] = Path(given["requests"])
        name = check_file_name(given.get("as", preset), "an attack")
        attack = cls(name, preset, options, given.get("suite"))
        attack.against(ModelSpec(), 0, Path()).pgd()  # raises what is wrong
        return attack

    def settings(self) -> PGDConfig:
        """How its image is optimised."""
        return self.against(ModelSpec(), 0, Path()).pgd()

    def against(
        self, model: ModelSpec, seed: int, out: Path, repair: Path | None = None
    ) -> AttackConfig:
        """The attack on the bare model, or through a repair."""
        options = dict(self.options)
        if repair is None:
            options = {key: options[key] for key in options if key not in ("gate", "evasion")}
        batch = options.pop("batch_size", None)
        run = RunSpec(out, resume=True, seed=seed, batch_size=batch)
        return AttackConfig(run=run, preset=self.preset, repair=repair, model=model, **options)


def image_attacks(adaptive: Sequence[str]) -> list[ImageAttack]:
    """The image attacks among those that are asked for; UsageError for one that can't be read."""
    adaptive = expanded(adaptive)
    for name in map(_called, adaptive):
        if name not in PUBLISHED and not _in_variants(name):
            raise UsageError(
                f"There is no attack {name!r}; there are {', '.join(VARIANT_ATTACKS)}, and `care "
                "list attacks` shows those with a single image too."
            )
    return [ImageAttack.parse(wanted) for wanted in adaptive if not _in_variants(wanted)]


def attacks_in_variants(adaptive: Sequence[str]) -> list[AskedVariants]:
    """The attacks in variants among them; UsageError for one that can't be read."""
    return [AskedVariants.parse(wanted) for wanted in expanded(adaptive) if _in_variants(wanted)]


def _in_variants(wanted: str) -> bool:
    return _called(wanted) in VARIANT_ATTACKS


def _called(wanted: str) -> str:
    return wanted.partition(",")[0].strip()
