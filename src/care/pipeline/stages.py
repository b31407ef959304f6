"""The stages of one job: each is made once, kept in the run's folder, and read back when resumed.

material, sites, effects, neurons, curves, channels, screening, selection, evaluation, controls: a
method each. Not here: the model, judge and splits of the examples, which they share
(`care.pipeline.workspace`), which of them a command goes through, and the report (`workflow`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from care.data.digests import example_digest
from care.data.example import Example, Suite
from care.data.small_world.suites import PGD
from care.defenses.artefact import FACTS, NUMBERS
from care.defenses.controls import (
    harmless_answers,
    means_control,
    random_control,
    random_discriminants,
)
from care.defenses.material import (
    ask_shard,
    gather,
    load_decisions,
    material_from,
    material_to,
    save_decisions,
)
from care.defenses.monitors.choosing import MonitorsFit, fit_monitors
from care.defenses.monitors.results import MonitorsTold
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.channel import Modality
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.fitting_data import said
from care.defenses.repair.memory import Memory
from care.defenses.repair.presets import PRESETS, RepairConfig
from care.defenses.repair.repair import Repair
from care.diagnosis.activation_means import spread
from care.diagnosis.channel_scan import scanned_sites
from care.diagnosis.faithfulness import Faithfulness
from care.diagnosis.full import closed_channels, scans_channels
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.neurons.results import JudgedSuppression, NeuronReport
from care.diagnosis.parts import DiagnosisParts
from care.diagnosis.results import ChannelsFound, Diagnosis, SitesFound
from care.diagnosis.scan import ScanRow
from care.diagnosis.site_results import SiteEffects
from care.evaluation.config import CONTROLS, PARTS, UNDEFENDED
from care.evaluation.results import Results
from care.evaluation.rows import JudgedRow, check_rows
from care.models.sites import Site
from care.pipeline.first_attacks import FirstAttacks
from care.pipeline.made_pictures import MADE
from care.pipeline.neuron_comparison import NEURONS, SUBSPACE, compare_answers, remaining
from care.pipeline.selection import (
    FINALISTS,
    RULE,
    WATCHED,
    Candidate,
    candidates,
    choose,
    mean_rates,
    ranked,
    said_of,
    screen,
    shown,
)
from care.pipeline.splits import pairs_of, split_examples
from care.pipeline.workspace import Workspace
from care.runs.progress import silent
from care.runs.rows import Rows
from care.runs.run import ROWS
from care.runs.shards import Shard
from care.runs.stages import stage_json
from care.typed import from_tree, to_tree

COMPARED = ("benign", "vqa", "naming", "lookalike")
"""Suites besides the attacks that controls are measured on."""

RANDOM = CONTROLS[0]
"""The control of a repair's monitors that is part of every job that fits some."""


def compared_suites(suites: Sequence[Suite]) -> list[Suite]:
    """The suites that controls are asked."""
    return [suite for suite in suites if suite.role == "attack" or suite.name in COMPARED]


def _made(suite: str) -> bool:
    """Whether a suite is of adversarial pictures."""
    return suite in PGD or suite.startswith(MADE)


class Stages(Workspace):
    """What is done in the workspace of a job, stage by stage."""

    def fitter(self) -> Fitter:
        """Answers to the fit split, sorted; activations are taken when they are needed."""
        attacks, benign = self._to_fit_on()
        config, kept = self._fit_config(), self.run.path / "decisions.safetensors"

        def make() -> dict[str, Any]:
            with (self.progress or silent)("material", len(attacks) + len(benign)) as bar:
                material = gather(
                    self.vlm,
                    attacks,
                    benign,
                    progress=bar.advance,
                    seen=FirstAttacks(self.judge, bar.say),
                    kept=self.kept("material"),
                    **self._asked_to_fit(config),
                )
            save_decisions(self.run.inside(kept.name), material)
            self.run.sign(kept.name)
            return material_to(material)

        facts = stage_json(self.run, "material", make, (kept.name,))
        material = material_from(facts, [*attacks, *benign], load_decisions(kept))
        return Fitter(self.vlm, material, config, self.job.batch)

    def answer_shard(self, shard: Shard) -> None:
        """Keep the answers to the requests of the fit split that are in a shard."""
        attacks, benign = self._to_fit_on()
        asked = self._asked_to_fit(self._fit_config())
        bar = (self.progress or silent)("material", len(attacks) + len(benign))
        with self.run.stage("shard of material"), bar as shown:
            ask_shard(
                self.vlm,
                [*attacks, *benign],
                shard,
                self.kept("material"),
                progress=shown.advance,
                **asked,
            )

    def _to_fit_on(self) -> tuple[list[Example], list[Example]]:
        """Attacks and benign requests of the fit split."""
        suites = self.suites("fit")
        attacks = split_examples(suites, lambda s: s.role == "attack")
        return attacks, split_examples(suites, lambda s: s.role != "attack")

    def _fit_config(self) -> RepairConfig:
        config = PRESETS[self.job.preset]
        return replace(config, monitors=None) if self.began_before_monitors() else config

    def _asked_to_fit(self, config: RepairConfig) -> dict[str, Any]:
        """How the requests to fit on are asked."""
        sites = scanned_sites(self.vlm.anatomy.n_layers, config.kind)
        return {
            "batch_size": self.job.batch,
            "max_new_tokens": self.job.answer_length,
            "sites": sites if config.reads_decisions else (),
        }

    def diagnosis(self, fitter: Fitter, config: DiagnosisConfig) -> Diagnosis:
        """Which sites and neurons carry the attacks that worked, and how sure that is.

        On the fit split; neurons to suppress, if they are asked for, are chosen on validation.
        """
        parts = self.parts(fitter, config)
        kept = self.run.path / "neurons-repair.json"

        @cache
        def rival() -> Repair:
            return Repair.of(fitter.repair())

        def keep(found: NeuronSuppression) -> None:
            self.run.write(kept.name, found.to_text())
            self.run.sign(kept.name)

        def neurons() -> NeuronReport:
            compared = rival() if config.repair_prompts else None
            return parts.neurons(compared, keep, self.kept("neurons"))

        sites = self._sites(parts)
        effects = self.stage(
            "effects", tuple[SiteEffects, ...], lambda: parts.effects(self.kept("effects"))
        )
        found = None
        if parts.reaches_neurons:
            found = self.stage("neurons", NeuronReport, neurons, (kept.name,))
        if config.judged and found and found.repair is not None and kept.exists():
            used = [e for part in parts.validation for e in spread(part, config.repair_prompts)]
            suites = remaining(self.counted("validation"), used, config.judged)
            judged = self.judged(suites, NeuronSuppression.load(kept), rival())
            found = replace(found, repair=replace(found.repair, judged=judged))
        curves = self.stage(
            "curves", tuple[Faithfulness, ...], lambda: parts.curves(effects, found)
        )
        return Diagnosis.of(sites, effects, found, curves)

    def scanned(self, fitter: Fitter, config: DiagnosisConfig) -> Diagnosis:
        """Of the diagnosis the scan of sites alone, by which presets choose their layers."""
        return Diagnosis.of(self._sites(self.parts(fitter, config)), (), None, ())

    def _sites(self, parts: DiagnosisParts) -> SitesFound:
        def make() -> SitesFound:
            rows = Rows(self.run.path / "scan.jsonl")
            done = [ScanRow.from_json(row) for row in rows.all()]
            try:
                return parts.sites(
                    done, lambda row: rows.add({"key": str(len(rows)), **row.to_json()})
                )
            finally:
                rows.close()

        return self.stage("sites", SitesFound, make)

    def judged(
        self, suites: Sequence[Suite], neurons: NeuronSuppression, rival: Repair
    ) -> JudgedSuppression:
        """Whole answers to `suites` with neurons suppressed, beside those under a repair."""
        defenses = [None, (NEURONS, neurons), (SUBSPACE, rival)]
        with self.inner("neuron-answers") as inner:
            table = self.ask(suites, defenses, "neuron answers", inner)
        return compare_answers(table, neurons, self.job.run.seed)

    def parts(self, fitter: Fitter, config: DiagnosisConfig) -> DiagnosisParts:
        """The diagnosis of this job, of attacks that worked."""
        complied = [e for e, _ in fitter.material.complied]
        validation: list[list[Example]] = [[], []]
        if config.repair_prompts:
            suites = self.counted("validation")
            validation = [
                split_examples(suites, lambda s: s.role == "attack"),
                split_examples(suites, lambda s: s.role != "attack"),
            ]
        return DiagnosisParts(
            self.vlm,
            [e for e in complied if not _made(e.suite)] or complied,
            [e for e, _ in fitter.material.answered],
            pairs=pairs_of(self.job, pictured=self.vlm.sees),
            validation=(validation[0], validation[1]),
            config=config.seeded(self.job.run.seed),
            judge=self.judge,
            progress=self.progress,
        )

    def channels(self, fitter: Fitter, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis with the channel scan, on goals of the validation split.

        Of a repair whose layers are chosen in another way it is the diagnosis alone.
        """

        def make() -> ChannelsFound | None:
            suites = self.suites("validation")
            attacks = split_examples(suites, lambda s: s.role == "attack")
            benign = split_examples(suites, lambda s: s.role != "attack")
            seed, kept = self.job.run.seed, self.kept("channels")
            return closed_channels(
                fitter, attacks, benign, seed=seed, progress=self.progress, kept=kept
            )

        if not scans_channels(fitter.config):
            return diagnosis
        return diagnosis.with_channels(self.stage("channels", ChannelsFound, make))

    def select(self, fitter: Fitter, diagnosis: Diagnosis) -> tuple[Candidate, Any]:
        """Fit the candidates, judge them on validation, and take the best by the stated rule."""
        by_depth = fitter.config.layers_by == "depth"
        tried, screened = self.finalists(fitter, {} if by_depth else diagnosis.sites)
        defenses = [None, *((c.name, c.repair) for c in tried)]
        with self.inner("selection") as inner:
            table = self.ask(self.counted("validation"), defenses, "selection", inner)
        before = mean_rates(table, UNDEFENDED)
        rates = {c.name: mean_rates(table, c.name) for c in tried}
        best = choose(before, rates)
        rows = [{"name": n, **shown(r), "chosen": n == best} for n, r in rates.items()]
        rows.insert(0, {"name": "none", **shown(before), "chosen": False})
        chosen = next(c for c in tried if c.name == best)
        selection = {"rule": RULE, "candidates": rows, "screened": screened}
        if fitter.config.monitors is None:
            memory = chosen.fitter.remembered(chosen.repair.channels)
            return replace(chosen, repair=replace(chosen.repair, memory=memory)), selection
        return self.watched(chosen, table, selection)

    def bare_answers(self) -> Results:
        """Answers of the undefended model to the validation split."""
        with self.inner("selection") as inner:
            return self.ask(self.counted("validation"), [None], "selection", inner)

    def began_before_monitors(self) -> bool:
        """Whether the test split was asked already, by a version that had no monitors yet."""
        return bool(self.run.rows()) and not self.run.stage_done("monitors")

    def watched(
        self, chosen: Candidate, table: Results, selection: dict[str, Any]
    ) -> tuple[Candidate, dict[str, Any]]:
        """The candidate with monitors, fitted on answers to the fit split, chosen on validation's.

        `table` holds validation's bare answers, which are what monitors read.
        """
        found = self.monitors(chosen.fitter, table, remember=True)
        memory = None
        if found.memory:  # of a stage that an earlier version ended, nothing is remembered
            memory = chosen.fitter.remembered(chosen.repair.channels, found.memory)
        repair = replace(chosen.repair, monitors=found.monitors, memory=memory)
        name = f"{chosen.name}, with monitors"
        with self.inner("selection") as inner:
            suites, defenses = self.counted("validation"), [None, (name, repair)]
            after = mean_rates(self.ask(suites, defenses, "watched selection", inner), name)
        for row in selection["candidates"]:
            row["chosen"] = False
        selection["candidates"].append({"name": name, **shown(after), "chosen": True})
        selection["rule"] += WATCHED
        return Candidate(name, repair, chosen.fitter), selection | {
            "monitors": to_tree(found.told())
        }

    def monitors(
        self,
        fitter: Fitter,
        table: Results,
        name: str = "monitors",
        shares: Sequence[float] = (),
        remember: bool = False,
        suites: Sequence[Suite] | None = None,
    ) -> MonitorsFit:
        """Monitors, fitted once and kept as the artefact of a repair without channels, with what
        they rest on if that is asked for; those with the thresholds of other `shares` of false
        alarms are kept beside it. `table` holds bare answers to `suites`, or to validation's."""
        folders = {share: f"{name}-{share:g}" for share in shares}

        def make() -> dict[str, Any]:
            chosen_on = self.counted("validation") if suites is None else suites
            asked = {example_digest(e): e for suite in chosen_on for e in suite}
            found = fit_monitors(
                self.vlm,
                said(fitter.material),
                [each for row in table.rows for each in said_of(row, asked)],
                fitter.config.monitors,
                batch_size=self.job.batch,
                shares=shares,
                remember=remember,
            )
            memory = Memory(None, found.memory) if remember else None
            repair = Repair((), monitors=found.monitors, memory=memory)
            repair.save(self.run.inside(name))
            for share, folder in folders.items():
                Repair((), monitors=found.others[share]).save(self.run.inside(folder))
            for file in files:
                self.run.sign(file)
            return to_tree(found.told())

        every = (name, *folders.values())
        files = tuple(f"{folder}/{file}" for folder in every for file in (FACTS, NUMBERS))
        told = from_tree(
            MonitorsTold,
            stage_json(self.run, name, make, files),
            "monitors",
            what=f"The stage {name} of {self.run.path}",
        )
        read, *others = (Repair.load(self.run.path / folder) for folder in every)
        memory = () if read.memory is None else read.memory.monitors
        by_share = {s: each.monitors for s, each in zip(folders, others, strict=True)}
        return MonitorsFit(read.monitors, told.choices, told.tried, by_share, memory)

    def finalists(
        self, fitter: Fitter, sites: Mapping[Modality, Sequence[Site]]
    ) -> tuple[list[Candidate], list[dict[str, Any]]]:
        """The candidates that are worth whole answers, and how all fare by first tokens."""
        tried = candidates(fitter, self.job.preset, sites)
        if len(tried) <= FINALISTS:
            return tried, []

        def make() -> dict[str, dict[str, float]]:
            suites, batch = self.counted("validation"), self.job.batch
            with (self.progress or silent)("screening", sum(map(len, suites))) as bar:
                kept = self.kept("screening")
                return screen(
                    self.vlm,
                    tried,
                    suites,
                    batch_size=batch,
                    seed=self.job.run.seed,
                    advance=bar.advance,
                    kept=kept,
                )

        rates = stage_json(self.run, "screening", make)
        before = rates.pop("none")
        best = ranked(before, rates)[:FINALISTS]
        rows = [{"name": n, **r, "chosen": n in best} for n, r in rates.items()]
        rows.insert(0, {"name": "none", **before, "chosen": False})
        return [candidate for candidate in tried if candidate.name in best], rows

    def controls(self, chosen: Candidate) -> list[tuple[str, Repair]]:
        """What the repair is compared with: edits with other directions, half of them, and monitors
        with other directions, which alarm as often on harmless answers to fit on."""
        repair = chosen.repair.edits_only()
        found = [
            ("random subspace", random_control(repair, self.job.run.seed)),
            ("difference of means", means_control(repair, chosen.fitter)),
        ]
        modalities = {channel.modality for channel in repair.channels}
        if modalities == {"image", "text"}:
            found.append(("without text", repair.only("image")))
            found.append(("without visual", repair.only("text")))
        if any(monitor.detector is not None for monitor in chosen.repair.monitors):
            found.append((RANDOM, self.random_monitors(chosen)))
        return found

    def random_monitors(self, chosen: Candidate) -> Repair:
        """The repair with random directions in its monitors; it reads answers that are there."""
        harmless = harmless_answers(chosen.fitter.material.answered)
        seed, batch = self.job.run.seed, self.job.batch
        with self.run.stage(RANDOM):
            return random_discriminants(self.vlm, chosen.repair, harmless, seed, batch)

    def prove(self, chosen: Candidate) -> tuple[Results, list[str], list[str]]:
        """Everything on the test split: bare, repaired; names of its parts and of controls."""
        repair, suites = chosen.repair, self.suites("test")
        parts = []
        if repair.monitors:
            parts = [*zip(PARTS, (repair.edits_only(), repair.monitors_only()), strict=True)]
        controls = self.controls(chosen)
        compared = [suite.name for suite in compared_suites(suites)]
        # In one call, so that prompts are read once for all of them.
        defenses = [None, ("care", repair), *parts, *controls]
        only = {name: compared for name, _ in controls}
        self.ask(suites, defenses, "evaluation", only=only)
        check_rows(JudgedRow, self.run.rows(), self.run.path / ROWS)
        names = [[name for name, _ in part] for part in (parts, controls)]
        return Results(self.run.rows()), names[0], names[1]
