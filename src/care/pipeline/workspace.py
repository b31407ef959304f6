"""What the stages of one job share: its model and judge, its splits, its folder.

Suites of a split are made once, what a stage finds is kept and read back, and whatever is answered
and judged is asked here. Not here: what the stages do (`care.pipeline.stages`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from care.data.digests import suite_digest
from care.data.example import Suite
from care.data.small_world.suites import BASELINE
from care.evaluation.results import Results
from care.evaluation.runner import evaluate as run_evaluation
from care.judges.refusal import certainly_refused
from care.judges.rules import RulesJudge, rules_for
from care.models.identity import load_pinned
from care.models.vlm import VLM
from care.pipeline.config import RepairJob
from care.pipeline.made_pictures import make_pictures
from care.pipeline.split_plan import Split
from care.pipeline.splits import Splits, sampled, without_pictures
from care.runs.kept_batches import KeptBatches
from care.runs.progress import Bar
from care.runs.run import Run
from care.runs.stages import stage_json
from care.typed import from_tree, to_tree

Found = TypeVar("Found")


class Workspace:
    """One job under way: model, judge, splits, run folder."""

    def __init__(
        self,
        job: RepairJob,
        run: Run,
        progress: Bar | None,
        sampled: bool = False,
        splits: Splits | None = None,
    ) -> None:
        """`sampled`: a part of the examples to fit on, and of harmless others, is asked. `splits`
        are the job's, where they are read already."""
        self.job, self.run, self.progress, self.sampled = job, run, progress, sampled
        self.vlm: VLM = load_pinned(run, job.model.name, job.model.load)
        self.judge: RulesJudge = rules_for(job.model)
        self.splits: dict[str, list[Suite]] = {}
        self._read = splits or Splits(job)

    @property
    def plan(self) -> dict[Split, list[Suite]]:
        """The suites of all splits, without the pictures that are made."""
        return self._read.plan

    def suites(self, split: Any) -> list[Suite]:
        """The suites of one split, made once; UsageError if an earlier attempt had others."""
        if split not in self.splits:
            job = self.job
            made = self._read.suites(split)
            if job.pgd:
                made = [
                    *made,
                    *make_pictures(job, self.run, self.vlm, self.plan, split, self.progress),
                ]
            if not self.vlm.sees:
                made = self._without_pictures(made)
            if self.sampled:
                made = [sampled(suite, split) for suite in made]
            self.run.pin("suites", {f"{suite.name}/{split}": suite_digest(suite) for suite in made})
            self.splits[split] = made
        return self.splits[split]

    def _without_pictures(self, suites: Sequence[Suite]) -> list[Suite]:
        """What a model that reads text alone can be asked; the manifest says what it isn't."""
        told = self.run.manifest.get("pictures_left_out", [])
        pictured = [suite.name for suite in suites if any(example.images for example in suite)]
        if new := [name for name in pictured if name not in told]:
            self.run.record(pictures_left_out=[*told, *new])
            warnings.warn(
                f"{self.vlm.name} reads text alone: requests with pictures are left out "
                f"({', '.join(new)}).",
                stacklevel=2,
            )
        return [kept for suite in suites if (kept := without_pictures(suite)) is not None]

    def counted(self, split: Any) -> list[Suite]:
        """The suites of one split without the baseline, which is shown but not counted."""
        return [suite for suite in self.suites(split) if suite.name != BASELINE]

    def stage(
        self, name: str, kind: type[Found], make: Callable[[], Any], also: Sequence[str] = ()
    ) -> Found:
        """What a stage found, of the type `kind`, made now or read back."""
        tree = stage_json(self.run, name, lambda: to_tree(make()), also)
        return from_tree(kind, tree, name, what=f"The stage {name} of {self.run.path}")

    def kept(self, stage: str) -> KeptBatches:
        """The finished batches of a stage."""
        return KeptBatches(self.run, stage)

    def inner(self, name: str) -> Run:
        """A run within the run's folder, for answers that aren't the job's own."""
        return Run(self.run.inside(name), resume=True, config=self.job.config())

    def seconds(self, stage: str) -> float:
        """How long a stage that ended has taken."""
        return next(s["seconds"] for s in self.run.stages if s["name"] == stage)

    def ask(
        self,
        suites: Sequence[Suite],
        defenses: Sequence[Any],
        stage: str,
        rows: Run | None = None,
        only: Mapping[str, Collection[str]] | None = None,
        whole: bool | None = None,
    ) -> Results:
        """Answer and judge as a stage of the run; rows go to `rows`, by default the run itself.

        They end where they refuse unless they are asked for `whole`, as the run's own are by
        default where another judge reads them. `only` is that of `care.evaluate`.
        """
        if whole is None:
            whole = rows is None and not self.job.cuts_refusals
        with self.run.stage(stage):
            return run_evaluation(
                self.vlm,
                suites,
                defenses,
                judge=self.judge,
                run=rows or self.run,
                seed=self.job.run.seed,
                batch_size=self.job.batch,
                max_new_tokens=self.job.answer_length,
                stop=None if whole else certainly_refused,
                progress=self.progress,
                only=only,
                hold_to_defenses=False,  # fitted anew when a job is resumed, equal up to rounding
            )
