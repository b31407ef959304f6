"""Every defense in one table: fitted on the same, asked the same, each at its best.

Material, diagnosis and CARE's own selection are stages of the main job (`stages`). Every rival is
tuned by one rule on validation (`tuning`), and so is each preset of CARE beside its rows as they
are without (`care_settings`); all rows (`comparison_rows`) are fitted on the same
parts of the material and asked the same test examples. A killed job goes on with the setting, the
row and the batch where it stopped:

    fits.jsonl, fits/    every fit: settings that were tried, and rows
    tuning/              answers to validation under every setting
    rows.jsonl           judged answers to test, bare and under every row
    refits/              the same of half of the test examples under its further fits
    overheads.jsonl      seconds of the same answers under each, in turns
    attacks/             pictures that were made against each row, where they were asked for
    verdicts.jsonl       the same answers to test by other judges (`comparison_judges`)
    table.json, report.html, table.md
    studies.json         further studies, where they were asked for (`studies`)

A finished one goes on with more rivals, fits, attacks or studies, where it is asked for them.
Nothing is chosen on test examples. Not here: figures (`care.evaluation.comparison_table`), the page
(`care.report.comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from care.data.example import Example, Suite
from care.defenses.base import Defense
from care.defenses.material import with_decisions
from care.defenses.repair.fitting import Fitter
from care.diagnosis.activation_means import spread
from care.diagnosis.full_config import LAYERS
from care.diagnosis.results import Diagnosis
from care.errors import FitError
from care.evaluation.attack_scores import AttackFigure
from care.evaluation.comparison_table import (
    CARE,
    TUNED,
    ComparisonTable,
    FitCost,
    PlannedRow,
    TriedSettings,
)
from care.pipeline.care_settings import CareSettings
from care.pipeline.comparison_attacks import AskedAttacks, attacked
from care.pipeline.comparison_judges import ComparedRows, answers_of, halved, table_of
from care.pipeline.comparison_rows import (
    NOT_QUICK,
    QUICKER,
    CareRows,
    MaterialPart,
    Materials,
    RivalFits,
    RowPlan,
    open_options,
    plan_of,
    rivals,
    tuned_plans,
    unless_quicker,
)
from care.pipeline.config import CompareJob
from care.pipeline.fits import Fit, Fits, Made
from care.pipeline.given_settings import Given, check_rows, read_settings, with_given
from care.pipeline.overheads import BATCH, overheads
from care.pipeline.search import SettingsSearch, setting_name
from care.pipeline.selection import RULE as CARES_RULE
from care.pipeline.splits import Splits
from care.pipeline.stages import Stages, compared_suites
from care.pipeline.studies import OWN, Studied, Study, best_rivals, check_studies
from care.pipeline.tuning import FIRST_LOOK, FULL, Options, settings_of
from care.pipeline.workflow import open_run
from care.report.comparison import write_comparison
from care.runs.progress import Bar, silent
from care.runs.rows import Rows
from care.runs.run import Run

REFITS = "refits"
"""Folder of the answers of further fits."""

TIMED, TIMED_QUICKLY = 4 * BATCH, BATCH // 2
"""Answers that are timed under each defense."""


@dataclass(frozen=True)
class _Row:
    """A row with its fits."""

    plan: RowPlan
    fits: tuple[Fit, ...]
    tried: tuple[TriedSettings, ...] = ()
    options: Options = field(default_factory=dict[str, Any])
    """The settings that were taken."""
    anew: Callable[[MaterialPart], Made] | None = None
    """It, with these, fitted on another part of the material; none of CARE's, which share fits."""

    @property
    def key(self) -> str:
        """The name by which its fits and answers are kept."""
        return setting_name(self.plan.name, self.options)

    def named(self) -> list[tuple[str, Defense]]:
        """Its defenses, by the names by which their answers are kept."""
        return [
            (name_of(self.key, number), fit.defense)
            for number, fit in enumerate(self.fits)
            if fit.defense is not None
        ]


def name_of(row: str, number: int) -> str:
    """Name of one fit of a row."""
    return f"{row}, fit {number + 1}" if number else row


def compare(job: CompareJob, progress: Bar | None = None) -> ComparisonTable:
    """The whole comparison. UsageError for a rival, attack, study or setting that there isn't."""
    kinds, attacks = rivals(job.defenses, job.quick), AskedAttacks.of(job.adaptive)
    check_studies(job.studies)
    given: Given = {}
    if job.settings is not None:
        given = read_settings(job.settings)
        check_rows(given, open_options(kinds, job.quick), job.settings)
    splits = Splits(job)
    with open_run(job, splits) as run:
        run.record(asked=job.asked())
        with run.stage("model"):
            work = Stages(job, run, progress, splits=splits)
        with Fits(run, work.vlm) as fits:
            own = unless_quicker(given, job.quick)
            compared = _Comparison(job, run, work, fits, own, progress).made(kinds, attacks)
        rules = work.judge
        del work, fits  # the model makes room for the judges
        with _refits(job, run, compared) as further:
            return table_of(compared, run, further, job.judging, rules, progress)


@contextmanager
def _refits(job: CompareJob, run: Run, compared: ComparedRows) -> Iterator[Run | None]:
    """The run of further fits' answers, if rows have any."""
    if not any(row.fits for row in compared.planned):
        yield None
        return
    with Run(run.inside(REFITS), resume=True, config=job.config()) as further:
        yield further


class _Comparison:
    """One comparison under way."""

    def __init__(
        self,
        job: CompareJob,
        run: Run,
        work: Stages,
        fits: Fits,
        given: Given,
        progress: Bar | None,
    ) -> None:
        self.job, self.run, self.work, self.fits, self.given = job, run, work, fits, given
        self.bar = progress or silent
        self.size = FIRST_LOOK if job.quick else FULL
        self.search = SettingsSearch(work, fits, self.size)

    def made(self, kinds: Mapping[str, type[Defense]], attacks: AskedAttacks) -> ComparedRows:
        """All of it but the table."""
        work, job = self.work, self.job
        fitter = work.fitter()
        diagnosis = work.channels(fitter, work.scanned(fitter, LAYERS))
        with self.run.stage("readings"):
            sites = work.vlm.anatomy.sites("layer_out")
            material = with_decisions(work.vlm, fitter.material, sites, job.batch)
        materials = Materials(material, job.most, job.run.seed)
        shared = Fitter(work.vlm, materials.of(0), fitter.config, job.batch)
        chosen, _ = work.select(shared, diagnosis)
        bare = work.bare_answers()
        own = CareRows(work, diagnosis, chosen, bare, materials)
        plans = [
            (plan, make) for plan, make in own.plans() if not (job.quick and plan.name in NOT_QUICK)
        ]
        with self.run.stage("fits"), self.bar("fits", len(plans) * job.fits) as bar:
            rows = [self._row(plan, make, bar.advance) for plan, make in plans]
        if (care := next(row for row in rows if row.plan.name == CARE)).fits[0].failed:
            raise FitError(care.fits[0].failed)
        after = 1 + rows.index(care)
        rows[after:after] = self._tuned(shared, diagnosis, materials)
        with self.run.stage("rivals"), self.bar("rivals", len(kinds)) as bar:
            for name, kind in kinds.items():
                bar.advance(0, note=name)
                rows.append(self._rival(name, kind, materials))
                bar.advance(1)
        tests = self._tests(job.quick)
        named = [each for row in rows for each in row.named()]
        first = {row.key: row.fits[0] for row in rows}
        work.ask(tests, [None, *(each for each in named if each[0] in first)], "evaluation")
        self._again(tests, [each for each in named if each[0] not in first])
        shown = {
            name_of(row.key, number): name_of(row.plan.name, number)
            for row in rows
            for number in range(job.fits)
        }
        there = {name: fit.defense for name, fit in first.items() if fit.defense is not None}
        ratios = self._overheads(there)
        folders = {name: fit.folder for name, fit in first.items() if fit.folder is not None}
        found = attacked(work, attacks, there, folders, tests)
        planned = [self._planned(row, materials.counts(), ratios, found) for row in rows]
        self.run.check_there()
        notes, budget = self._notes(kinds), self.search.budget()
        compared = ComparedRows(tests, planned, shown, notes, budget, job.run.seed)
        if job.studies:
            with _refits(job, self.run, compared) as further:
                answered = answers_of(self.run, further).of(compared)
            # there while studies go on, as the rules see it
            write_comparison(compared.table(answered), self.run.path)
            self._study(rows, own, materials)
        return compared

    def _study(self, rows: Sequence[_Row], own: CareRows, materials: Materials) -> None:
        """What is studied besides, of CARE and of the best rivals."""
        there = {
            row.plan.name: (row, row.fits[0].defense)
            for row in rows
            if row.fits[0].defense is not None
        }
        taken = {
            name: (settings, defense)
            for name, (row, defense) in there.items()
            if row.plan.group == "rival"
            for settings in row.tried
            if settings.chosen
        }
        studied = [
            Studied(
                name, row.key, defense, row.anew or (lambda part, n=name: own.on(part).made(n, 0))
            )
            for name in (*OWN, *best_rivals(self.search, taken))
            for row, defense in [there[name]]
        ]
        tests = self._tests(compared=True)
        Study(self.search, studied, materials, tests).made(self.job.studies)

    # -- fits ------------------------------------------------------------------------------------

    def _row(
        self, plan: RowPlan, make: Callable[[int], Made], advance: Callable[[int], None]
    ) -> _Row:
        found = []
        for number in range(self.job.fits):
            found.append(self.fits.made(name_of(plan.name, number), lambda n=number: make(n)))
            advance(1)
        return _Row(plan, tuple(found))

    def _rival(self, name: str, kind: type[Defense], materials: Materials) -> _Row:
        """A rival at its best: tuned on validation, then fitted by every number."""
        always = QUICKER.get(name, {}) if self.job.quick else {}
        rival = RivalFits(self.work, kind, materials, always)
        wanted = settings_of(kind, self.size.most(kind), self.job.run.seed, always)
        row = self._searched(plan_of(name, kind), wanted, rival.made, kind.searched)
        return replace(row, anew=lambda part: rival.on(part).made(row.options, 0))

    def _tuned(self, shared: Fitter, diagnosis: Diagnosis, materials: Materials) -> list[_Row]:
        """CARE's presets as rivals are tuned; monitors are chosen on the same sample too."""
        job, most = self.job, self.size.settings

        @cache
        def fitter(number: int) -> Fitter:
            if number == 0:
                return shared
            return Fitter(self.work.vlm, materials.of(number), shared.config, job.batch)

        found = []
        bare, plans = self.search.asked(), tuned_plans(job.quick)
        with self.run.stage("tuned"), self.bar("tuned", len(plans)) as bar:
            for preset, plan in plans.items():
                own = CareSettings(
                    self.work,
                    preset,
                    fitter,
                    diagnosis,
                    bare,
                    "tuned-monitors",
                    suites=self.search.sample,
                )
                wanted = own.wanted(most, job.run.seed)
                found.append(self._searched(plan, wanted, own.made, own.searched))
                bar.advance(1)
        return found

    def _searched(
        self,
        plan: RowPlan,
        wanted: Sequence[Options],
        made: Callable[[Options, int], Made],
        tried: Mapping[str, Sequence[Any]],
    ) -> _Row:
        """A row with the best of the settings that are `wanted`, points of the values that are
        `tried`, or with those that were given; fitted by every number."""
        if (given := self.given.get(plan.name)) is not None:
            wanted = [with_given(plan.name, wanted[0], given, tried)]
        best = self.search.of(plan.name, wanted, lambda options: made(options, 0))
        found, key = [best.fit], setting_name(plan.name, best.options)
        if best.fit.defense is not None:
            found += [
                self.fits.made(name_of(key, number), lambda n=number: made(best.options, n))
                for number in range(1, self.job.fits)
            ]
        return _Row(plan, tuple(found), best.tried, best.options)

    # -- figures ---------------------------------------------------------------------------------

    def _tests(self, compared: bool) -> list[Suite]:
        """All test suites, or of the small world attacks and those that controls are asked."""
        suites = self.work.suites("test")
        if not compared or self.job.attacks:
            return suites
        return compared_suites(suites)

    def _again(self, tests: Sequence[Suite], named: Sequence[tuple[str, Defense]]) -> None:
        """Answers to every other test example, under further fits beside the first ones."""
        if not named:
            return
        with self.work.inner(REFITS) as inner:
            self.work.ask(halved(tests), named, "refits", inner, whole=not self.job.cuts_refusals)

    def _overheads(self, defenses: Mapping[str, Defense]) -> dict[str, float]:
        suites = [suite for suite in self.work.counted("validation") if suite.role != "attack"]
        examples: list[Example] = [example for suite in suites for example in suite]
        timed = spread(examples, TIMED_QUICKLY if self.job.quick else TIMED)
        rows = Rows(self.run.path / "overheads.jsonl")
        missing = [(name, each) for name, each in defenses.items() if name not in rows]
        try:
            with self.run.stage("overheads"), self.bar("overheads", len(missing)) as bar:
                length = self.job.answer_length
                for name, ratio in overheads(self.work.vlm, missing, timed, length):
                    rows.add({"key": name, "ratio": ratio})
                    bar.advance(1)
        finally:
            rows.close()
        return {row["key"]: row["ratio"] for row in rows.all()}

    def _planned(
        self,
        row: _Row,
        counts: tuple[int, int],
        ratios: Mapping[str, float],
        found: Sequence[AttackFigure],
    ) -> PlannedRow:
        plan, first = row.plan, row.fits[0]
        cost = plan.cost if first.defense is None else first.defense.cost
        harmful, harmless = counts if cost.needs else (0, 0)
        return PlannedRow(
            plan.name,
            plan.group,
            plan.paper,
            first.failed,
            FitCost(
                cost.forwards,
                cost.answers,
                cost.trains,
                cost.needs,
                ratios.get(row.key),
                first.seconds,
                harmful,
                harmless,
            ),
            row.tried,
            tuple(
                (number, name_of(plan.name, number))
                for number, fit in enumerate(row.fits)
                if number and fit.failed is None
            ),
            tuple(replace(each, defense=plan.name) for each in found if each.defense == row.key),
        )

    def _notes(self, kinds: Sequence[str] | Mapping[str, object]) -> tuple[str, ...]:
        size, asked = self.size, self.search.budget().answers
        quick = {name: QUICKER[name] for name in kinds if name in QUICKER and self.job.quick}
        notes = [
            f"Every row is fitted on the same requests, at most {self.job.most} of each class.",
            f"Rivals: at most {size.settings} settings of what their papers leave open (of those "
            f"that are trained {size.trained}), each asked the same {asked} validation examples, "
            "the published settings first.",
            f"CARE by default: the main job's own rule on validation, {CARES_RULE}. Its presets "
            "are as published.",
            f"Rows that are named tuned: CARE with exactly the rivals' budget and rule. {TUNED} "
            "has monitors that were fitted and chosen without other validation answers.",
        ]
        if self.given:
            notes.append(
                f"Given in {self.job.settings}, not searched here: the settings of "
                f"{', '.join(sorted(self.given))}."
            )
        if self.job.quick:
            notes.append(f"Quick: {self.job.quickly}, and one part of the suites.")
        for name, options in quick.items():
            told = ", ".join(f"{key} = {value}" for key, value in options.items())
            notes.append(f"Quick: {name} is fitted with {told}.")
        return tuple(notes)
