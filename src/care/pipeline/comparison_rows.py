"""What is compared: CARE and its parts, controls, and every rival; how each is fitted anew.

A row is fitted on a part of the material that its number names (`material_parts.drawn`), the same
for all rows: number 0 is evenly spaced, others are drawn. CARE's sites and gates are those that the
main job's own rule takes on validation (`selection`); its monitors are fitted and chosen anew for
each part. The presets `paper` and `official` are as they are published. Beside these, each preset
is tuned as rivals are (`care_settings`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from care.data.example import Example
from care.defenses import known
from care.defenses.base import Defense
from care.defenses.controls import random_control, random_discriminants, shuffled_labels
from care.defenses.cost import Cost
from care.defenses.material import CLASSES, Material
from care.defenses.monitors.choosing import fit_monitors, labelled_answer
from care.defenses.repair.channel import Modality
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.fitting_data import said
from care.defenses.repair.presets import PRESETS, Preset
from care.defenses.repair.repair import Repair
from care.diagnosis.results import Diagnosis
from care.errors import UsageError
from care.evaluation.comparison_table import CARE, TUNED, Group
from care.evaluation.results import Results
from care.models.sites import Site
from care.pipeline.ablation import fitted as fitted_change
from care.pipeline.ablation_rows import Change
from care.pipeline.care_settings import open_settings
from care.pipeline.fits import Made, timed
from care.pipeline.given_settings import Given, Open
from care.pipeline.material_parts import apart, drawn
from care.pipeline.selection import Candidate
from care.pipeline.stages import Stages
from care.pipeline.tuning import Options, is_fitted, options_of, settings_of

NO_RIVALS = ("repair", "neurons")
"""Registered defenses that are rows of CARE, or belong to its diagnosis."""

CONTROLS = ("always-refuse", "random-monitor", "random-subspace")
"""Registered ones that nobody proposes: what a defense has to be better than."""

FIRST = (
    "astra",
    "spo-vlm",
    "refusal-pairs",
    "text-first",
    "self-reminder",
    "difference-of-means",
    "always-refuse",
)
"""Rivals of a quick comparison that names none: the paper's own, what costs nothing to try, one
vector, and what none may be as safe as."""

NOT_QUICK = (
    "care: random monitors",
    "care: shuffled labels",
    "care: paper, tuned",
    "care: official, tuned",
)
"""Rows of CARE that a quick comparison leaves out."""

EVERY = "all"
"""Names every rival there is."""

QUICKER: Mapping[str, Options] = {
    "astra": {"pictures": 4, "draws": 1, "masks": 32, "grid": 7},
    "autosteer": {"steps": 15},
    "circuit-breakers": {"steps": 10, "batch_size": 4},
    "refusal-direction": {"train": 32, "validation": 8},
    "refusal-pairs": {"steps": 10, "batch_size": 4},
    "smoothing": {"copies": 3},
    "spo-vlm": {"steps": 10},
}
"""Options of a quick comparison in place of those that take minutes; the table tells them."""


@dataclass(frozen=True)
class RowPlan:
    """A row of the table."""

    name: str
    """Its name."""
    group: Group
    """What it is."""
    cost: Cost
    """What it declares."""
    paper: str = ""
    """Where it was published."""


@dataclass(frozen=True)
class MaterialPart:
    """A part of the material that rows are fitted on besides."""

    label: str
    """What it is, in the names of fits and of answers."""
    without: tuple[str, ...] = ()
    """Suites that nothing is fitted on."""
    most: int | None = None
    """Most requests of each class, if not as many as every row is fitted on."""


class Materials:
    """What each number of a fit is fitted on."""

    def __init__(self, material: Material, most: int, seed: int) -> None:
        self._material, self._most, self._seed = material, most, seed

    def of(self, number: int) -> Material:
        """The part of that number."""
        return drawn(self._material, self._most, number, self._seed)

    def on(self, part: MaterialPart) -> Materials:
        """The same of another part; FitError where nothing is left of a class."""
        material = apart(self._material, part.without) if part.without else self._material
        return Materials(material, part.most or self._most, self._seed)

    def there(self) -> int:
        """Requests of the class that has most, all of them."""
        return max(len(getattr(self._material, name)) for name in CLASSES)

    def counts(self) -> tuple[int, int]:
        """Harmful and harmless requests of each part."""
        part = self.of(0)
        return len(part.complied) + len(part.refused), len(part.answered)


def rivals(names: Sequence[str], quick: bool = False) -> dict[str, type[Defense]]:
    """The rivals of these names; without any all there are, or of a `quick` comparison the first to
    look at. UsageError for an unknown one."""
    there = [name for name in known.names() if name not in NO_RIVALS]
    if not names and quick:
        names = FIRST
    if tuple(names) == (EVERY,):
        names = ()
    for name in names:
        if name not in there:
            raise UsageError(
                f"There is no rival {name!r} to compare; there are {', '.join(there)}. CARE's own "
                "rows are always there."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"A rival is named twice in {', '.join(names)}; name it once.")
    return {name: kind for name in names or there if (kind := known.kind_of(name)) is not None}


def tuned_plans(quick: bool = False) -> dict[Preset, RowPlan]:
    """The rows of CARE's presets at the rivals' budget; the default's has no name of a preset.

    Of a `quick` comparison those that it has.
    """
    names: dict[Preset, str] = {preset: f"care: {preset}, tuned" for preset in PRESETS}
    names["corrected"] = TUNED
    return {
        preset: RowPlan(name, "care", Repair.cost, Repair.paper)
        for preset, name in names.items()
        if not (quick and name in NOT_QUICK)
    }


def open_options(kinds: Mapping[str, type[Defense]], quick: bool = False) -> dict[str, Open]:
    """What each row leaves open that settings can be given of: rivals, and CARE's presets."""
    found: dict[str, Open] = {
        name: (settings_of(kind, 1)[0], kind.searched) for name, kind in kinds.items()
    }
    for preset, plan in tuned_plans(quick).items():
        tried = open_settings(preset)
        found[plan.name] = ({name: values[0] for name, values in tried.items()}, tried)
    return found


def unless_quicker(given: Given, quick: bool) -> Given:
    """Settings that are given, without those that a `quick` comparison has its own values of."""
    own = QUICKER if quick else {}
    return {
        row: {name: value for name, value in options.items() if name not in own.get(row, {})}
        for row, options in given.items()
    }


def plan_of(name: str, kind: type[Defense]) -> RowPlan:
    """The row of a rival or of a registered control."""
    group: Group = "control" if name in CONTROLS else "rival"
    return RowPlan(name, group, kind.cost, kind.paper)


class RivalFits:
    """The fits of one rival.

    Settings that differ in options which don't enter a fit (`Defense.unfitted`) are one fit.
    """

    def __init__(
        self,
        work: Stages,
        kind: type[Defense],
        materials: Materials,
        always: Options | None = None,
    ) -> None:
        """`always`: options of every fit."""
        self.work, self.kind, self.materials, self.always = work, kind, materials, always or {}
        self._shared: dict[tuple[Any, ...], Made] = {}

    def on(self, part: MaterialPart) -> RivalFits:
        """Its fits on another part of the material."""
        return RivalFits(self.work, self.kind, self.materials.on(part), self.always)

    def made(self, options: Options, number: int) -> Made:
        """The rival with these options on the part of that number, which is its seed too."""
        after = {name: options[name] for name in self.kind.unfitted if name in options}
        key = (number, *sorted((name, v) for name, v in options.items() if name not in after))
        if key not in self._shared:
            self._shared[key] = self._fitted(options, number)
        fitted, seconds = self._shared[key]
        return (replace(cast(Any, fitted), **after) if after else fitted), seconds

    def _fitted(self, options: Options, number: int) -> Made:
        material, job = self.materials.of(number), self.work.job
        offered: dict[str, Any] = {"material": material, "seed": job.run.seed + number}
        if not self.kind.cost.trains:
            # What is trained is trained in batches as published; others only read so many at once.
            offered["batch_size"] = job.batch
        takes = options_of(self.kind)
        given = {name: value for name, value in offered.items() if name in takes}
        given |= options | self.always
        if not is_fitted(self.kind):
            return timed(lambda: self.kind(**given))
        attacks = _asked(material, "complied", "refused")
        benign = _asked(material, "answered")
        return timed(lambda: self.kind.fit(self.work.vlm, attacks, benign, **given))


def _asked(material: Material, *classes: str) -> list[Example]:
    return [example for name in classes for example, _ in getattr(material, name)]


class CareRows:
    """The rows of CARE and of its controls."""

    def __init__(
        self,
        work: Stages,
        diagnosis: Diagnosis,
        chosen: Candidate,
        validation: Results,
        materials: Materials,
        stage: str = "monitors",
    ) -> None:
        """`stage` is the one that their monitors are fitted in."""
        self.work, self.diagnosis, self.validation = work, diagnosis, validation
        self.chosen, self.config, self.materials = chosen, chosen.fitter.config, materials
        self.stage = stage
        self.places: dict[Modality, list[Site]] = {}
        for channel in chosen.repair.channels:
            self.places.setdefault(channel.modality, []).append(channel.site)
        self._edits, self._whole = cache(self._fit_edits), cache(self._fit_whole)
        self.on = cache(self._on)

    def _on(self, part: MaterialPart) -> CareRows:
        """Its rows on another part of the material, whose monitors are chosen without the suites
        that it leaves out; made once. FitError where nothing is left of a class."""
        kept = Results([r for r in self.validation.rows if r["suite"] not in part.without])
        stage = f"monitors-{re.sub(r'[^A-Za-z0-9]+', '-', part.label)}"
        return CareRows(
            self.work, self.diagnosis, self.chosen, kept, self.materials.on(part), stage
        )

    def made(self, name: str, number: int) -> Made:
        """The fit of a number of the row of that name."""
        return next(make for plan, make in self.plans() if plan.name == name)(number)

    def plans(self) -> list[tuple[RowPlan, Callable[[int], Made]]]:
        """All rows with their fits of a number: presets, parts, the default, then controls."""
        rows: list[tuple[str, Group, Callable[[int], Made]]] = [
            ("care: paper", "care", lambda n: self._preset("paper", n)),
            ("care: official", "care", lambda n: self._preset("official", n)),
            ("care: edits only", "care", self._edits),
            ("care: monitors only", "care", self._monitors),
            (CARE, "care", lambda n: (self._whole(n)[0], sum(self._whole(n)[1:]))),
            ("care: random subspace", "control", self._random_subspace),
            ("care: random monitors", "control", self._random_monitors),
            ("care: shuffled labels", "control", self._shuffled),
        ]
        return [
            (RowPlan(name, group, Repair.cost, Repair.paper if group == "care" else ""), make)
            for name, group, make in rows
        ]

    def _preset(self, name: Any, number: int) -> Made:
        fitter = self._fitter(self.materials.of(number))
        return timed(lambda: fitted_change(Change(name, name), fitter, self.diagnosis))

    def _fitter(self, material: Material) -> Fitter:
        return Fitter(self.work.vlm, material, self.config, self.work.job.batch)

    def _fit_edits(self, number: int) -> Made:
        return timed(lambda: self._edited(self.materials.of(number)))

    def _edited(self, material: Material) -> Repair:
        made = Repair.of(self._fitter(material).repair(self.places, "corrected"))
        return replace(made, name=CARE)

    def _fit_whole(self, number: int) -> tuple[Repair, float, float]:
        """The default, and seconds of its edits and of its monitors."""
        edits, seconds = self._edits(number)
        assert isinstance(edits, Repair)
        stage = f"{self.stage}-{number}" if number else self.stage
        fitter = self._fitter(self.materials.of(number))
        found = self.work.monitors(fitter, self.validation, stage)
        return replace(edits, monitors=found.monitors), seconds, self.work.seconds(stage)

    def _monitors(self, number: int) -> Made:
        repair, _, seconds = self._whole(number)
        return repair.monitors_only(), seconds

    def _random_subspace(self, number: int) -> Made:
        edits, seconds = self._edits(number)
        assert isinstance(edits, Repair)
        return random_control(edits, self.work.job.run.seed + number), seconds

    def _random_monitors(self, number: int) -> Made:
        repair, *seconds = self._whole(number)
        harmless = [labelled_answer(e, a, False) for e, a in self.materials.of(number).answered]
        seed, batch = self.work.job.run.seed + number, self.work.job.batch
        made, more = timed(
            lambda: random_discriminants(self.work.vlm, repair, harmless, seed, batch)
        )
        return made, sum(seconds) + more

    def _shuffled(self, number: int) -> Made:
        material = shuffled_labels(self.materials.of(number), [self.work.job.run.seed, number, 1])

        def make() -> Repair:
            found = fit_monitors(
                self.work.vlm,
                said(material),
                (),
                self.config.monitors,
                batch_size=self.work.job.batch,
                remember=False,
            )
            return replace(self._edited(material), monitors=found.monitors)

        return timed(make)
