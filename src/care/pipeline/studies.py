"""Further studies of a comparison, on request: families left out, sizes of the fit, strengths.

Studied are CARE by default, its two parts, and the best rivals: those whose settings, as they were
taken, rank first on validation by the rule that took them (`tuning`), never by test figures.

    families    fitted without one attack family, settings as tuned, and asked that family's test
                examples; CARE's monitors are also chosen without its validation answers
    sizes       fitted on at most n requests of each class, as far as there are
    strengths   the fit of the table at multiples of its strength, asked the validation examples
                that settings are tried on; of those whose whole effect has a strength

Fits and answers are kept as those of the table are, so a killed job goes on; `studies.json` holds
what was found. A fit that fails is told and not an end. Not here: the figures
(`care.evaluation.comparison_studies`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from care.data.example import Suite
from care.data.small_world.suites import BASELINE
from care.defenses.base import Defense
from care.defenses.low_rank import LowRank
from care.defenses.material import CLASSES
from care.defenses.repair.repair import Repair
from care.defenses.steering import AtLayers
from care.errors import UsageError
from care.evaluation.comparison_studies import (
    STUDIES,
    AtStrength,
    FittedOn,
    Studies,
    UnseenFamily,
    corrected,
    merged,
    pooled_rates,
    unseen_family,
)
from care.evaluation.comparison_table import CARE, TriedSettings
from care.evaluation.config import UNDEFENDED
from care.pipeline.comparison_rows import MaterialPart, Materials
from care.pipeline.fits import Made
from care.pipeline.search import SettingsSearch
from care.pipeline.selection import mean_rates, ranked
from care.pipeline.tuning import LIMITS, rates_of
from care.report.studies import load_studies, write_studies
from care.runs.progress import silent

OWN = (CARE, "care: edits only", "care: monitors only")
"""CARE's rows that are studied."""

BEST = 5
"""Rivals that are studied."""

SIZES = (16, 64, 250, 1000)
"""Most requests of each class that are fitted on."""

FACTORS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
"""Multiples of the strength that was taken."""


@dataclass(frozen=True)
class Studied:
    """A row of the comparison that is studied."""

    name: str
    """Its name."""
    key: str
    """The name by which its fits and answers are kept."""
    defense: Defense
    """Its first fit."""
    anew: Callable[[MaterialPart], Made]
    """It, fitted on another part of the material."""


def check_studies(names: Sequence[str]) -> None:
    """UsageError for a study that there isn't."""
    for name in names:
        if name not in STUDIES:
            raise UsageError(
                f"There is no study {name!r:.40} of a comparison; there are {', '.join(STUDIES)}."
            )


def best_rivals(
    search: SettingsSearch, taken: Mapping[str, tuple[TriedSettings, Defense]]
) -> list[str]:
    """The names of the best rivals, best first, by validation alone.

    `taken` are each one's settings that were taken, and its fit with them; those that had nothing
    to choose are asked the sample now.
    """
    unasked = [(name, fit) for name, (tried, fit) in taken.items() if tried.asr is None]
    table = search.asked(unasked)
    rates = {
        name: mean_rates(table, name) if tried.asr is None else rates_of(tried)
        for name, (tried, _) in taken.items()
    }
    return ranked(mean_rates(table, UNDEFENDED), rates, LIMITS)[:BEST]


def sizes_of(there: int) -> list[int]:
    """The sizes that are fitted on, where the largest class has so many requests."""
    smaller = [size for size in SIZES if size < there]
    return [*smaller, there] if len(smaller) < len(SIZES) else smaller


def strength_of(defense: Defense) -> float | None:
    """The strength of all that a defense does; None where part of it has none."""
    if isinstance(defense, Repair):
        return None if defense.monitors else defense.channels[0].strength
    return defense.strength if isinstance(defense, AtLayers | LowRank) else None


class Study:
    """The studies of one comparison."""

    def __init__(
        self,
        search: SettingsSearch,
        rows: Sequence[Studied],
        materials: Materials,
        tests: Sequence[Suite],
    ) -> None:
        """`tests` are the test suites that refitted rows are asked, but for the baseline's."""
        self.search, self.work, self.fits = search, search.work, search.fits
        self.rows, self.materials, self.seed = rows, materials, self.work.job.run.seed
        self.tests = [suite for suite in tests if suite.name != BASELINE]
        self.bar = self.work.progress or silent

    def made(self, asked: Sequence[str]) -> Studies:
        """The studies that are asked for, with those that the run has already; written."""
        run = self.work.run
        now = Studies(
            tuple(row.name for row in self.rows),
            (),
            self._notes(),
            self._families() if "families" in asked else (),
            self._sizes() if "sizes" in asked else (),
            self._strengths() if "strengths" in asked else (),
        )
        run.check_there()
        found = merged(load_studies(run.path), now, asked)
        write_studies(found, run.path)
        return found

    # -- families --------------------------------------------------------------------------------

    def _families(self) -> tuple[UnseenFamily, ...]:
        there = {suite.name for suite in self.work.suites("fit")}
        families = [s for s in self.tests if s.role == "attack" and s.name in there]
        parts = {s.name: MaterialPart(f"without {s.name}", without=(s.name,)) for s in families}
        refitted, failed = self._fitted(list(parts.values()), "families")
        found = []
        for suite in families:
            part = parts[suite.name]
            defenses = [(row.key, row.defense) for row in self.rows]
            results = self.work.ask(
                [suite], [None, *defenses, *self._named(part, refitted)], "families"
            )
            for row in self.rows:
                name = _refitted(row.key, part)
                found.append(
                    UnseenFamily(row.name, suite.name, failed[name], None, None, None)
                    if name in failed
                    else replace(
                        unseen_family(results, row.key, suite.name, name, self.seed),
                        defense=row.name,
                    )
                )
        return corrected(sorted(found, key=lambda one: self._place(one.defense)))

    # -- sizes -----------------------------------------------------------------------------------

    def _sizes(self) -> tuple[FittedOn, ...]:
        parts = [MaterialPart(f"on {size}", most=size) for size in sizes_of(self.materials.there())]
        refitted, failed = self._fitted(parts, "sizes")
        defenses = [each for part in parts for each in self._named(part, refitted)]
        results = self.work.ask(self.tests, [None, *defenses], "sizes")
        counts = {part: self._counts(part) for part in parts}
        found = []
        for row, part in product(self.rows, parts):
            name = _refitted(row.key, part)
            rates = pooled_rates(results, name, self.seed) if name not in failed else {}
            told = (rates.get(each) for each in ("asr", "answered", "utility"))
            why = failed.get(name)
            found.append(FittedOn(row.name, part.most or 0, counts[part], why, *told))
        return tuple(found)

    def _counts(self, part: MaterialPart) -> dict[str, int]:
        """Requests of each class of a part."""
        material = self.materials.on(part).of(0)
        return {name: len(getattr(material, name)) for name in CLASSES}

    # -- strengths -------------------------------------------------------------------------------

    def _strengths(self) -> tuple[AtStrength, ...]:
        places: dict[str, tuple[Studied, float, float]] = {}
        defenses: list[tuple[str, Defense]] = []
        for row in self.rows:
            if (strength := strength_of(row.defense)) is None:
                continue
            assert isinstance(row.defense, Repair | AtLayers | LowRank)
            for factor in FACTORS:
                name = f"{row.key}, strength × {factor:g}"
                places[name] = row, factor, factor * strength
                defenses.append((name, row.defense.with_strength(factor * strength)))
        results = self.search.asked(defenses)
        return tuple(
            AtStrength(row.name, factor, strength, **pooled_rates(results, name, self.seed))
            for name, (row, factor, strength) in places.items()
        )

    # -- fits ------------------------------------------------------------------------------------

    def _fitted(
        self, parts: Sequence[MaterialPart], study: str
    ) -> tuple[dict[str, Defense], dict[str, str]]:
        """The rows fitted on these parts, and why some aren't, by their names in answers."""
        found: dict[str, Defense] = {}
        failed: dict[str, str] = {}
        stage, count = f"fits of {study}", len(parts) * len(self.rows)
        with self.work.run.stage(stage), self.bar(stage, count) as bar:
            for part, row in product(parts, self.rows):
                name = _refitted(row.key, part)
                fit = self.fits.made(name, lambda row=row, part=part: row.anew(part))
                if fit.defense is not None:
                    found[name] = fit.defense
                else:
                    failed[name] = fit.failed or ""
                bar.advance(1)
        return found, failed

    def _named(
        self, part: MaterialPart, refitted: Mapping[str, Defense]
    ) -> list[tuple[str, Defense]]:
        names = [_refitted(row.key, part) for row in self.rows]
        return [(name, refitted[name]) for name in names if name in refitted]

    def _place(self, name: str) -> int:
        return [row.name for row in self.rows].index(name)

    def _notes(self) -> tuple[str, ...]:
        rivals = [row.name for row in self.rows if row.name not in OWN]
        notes = [
            "Studied are CARE by default and its parts"
            + (
                f", and the best rivals: {', '.join(rivals)}. They have the least attack success "
                "on validation, with the settings that were taken, among those within the limits, "
                "then they lose the least beyond; test figures have no part in it."
                if rivals
                else "; there is no rival."
            ),
            "Settings stay as they were tuned, and CARE's sites and gates as they were selected, "
            "on all families; each fit is the first of its kind, without a spread.",
            f"Strengths are asked the same {self.search.budget().answers} validation examples as "
            "settings; nothing is chosen by them. Monitors have no strength.",
        ]
        return tuple(notes)


def _refitted(key: str, part: MaterialPart) -> str:
    return f"{key}, {part.label}"
