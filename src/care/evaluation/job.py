"""The job behind `care evaluate` and `care rejudge`: answer, judge with several judges, tabulate.

    rows.jsonl, answers.jsonl   the run (`runs`), judged by the offline rules
    verdicts.jsonl              the other judges' verdicts on the same answers (`rejudge`)
    attacks/                    images made against each defense (`evaluation_attacks`)
    table.json                  the scorecard (`scorecard`)

The model is let go before a judge is loaded, so that a large judge fits where the model was.
Answers are cut as soon as they refuse only where the rules are the one judge: others are given
whole answers, as their protocols have it.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from care.data.digests import digest_of, suite_digest
from care.data.example import Suite
from care.data.registry import fitted_suite, load_suite
from care.defenses.repair.repair import Repair
from care.errors import DataError, UsageError
from care.evaluation.adaptive import (
    ImageAttack,
    check_goals,
    held_out,
    image_suites,
    make_images,
    threats,
)
from care.evaluation.leak_check import refuse_leaks, repair_leaks
from care.evaluation.rejudge import open_verdicts, record_identity, rejudge
from care.evaluation.row_shapes import ROW
from care.evaluation.runner import UNDEFENDED
from care.evaluation.runner import evaluate as answer_and_judge
from care.evaluation.scorecard import MARGIN, RULES, scorecard
from care.evaluation.suites import chosen_suites
from care.evaluation.table import Table
from care.judges.labels import read_labels, with_labels
from care.judges.refusal import certainly_refused
from care.judges.registry import check_judge, load_judge, needs_images, shown_name
from care.judges.rules import RulesJudge, rules_for
from care.models.identity import load_pinned
from care.models.thoughts import known_tags
from care.pipeline.config import Job, load_model
from care.runs.environment import started
from care.runs.manifest import MANIFEST
from care.runs.options import MANY, MAX_BATCH, MAX_SEED, require
from care.runs.progress import Bar
from care.runs.rows import Row, Rows
from care.runs.run import ROWS, Run, copy_run
from care.runs.shapes import check_rows
from care.statistics.judge_error import JudgeAccuracy

TABLE = "table.json"
"""Name of the scorecard in a run's folder."""


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation; what `care evaluate` is asked for."""

    model: str | None = None
    """Name or folder of a model; None for the embedded one."""
    suites: tuple[str, ...] = ()
    """Attack and over-refusal suites, by name or .jsonl file; none with no `utility`: all of the
    small world."""
    utility: tuple[str, ...] = ()
    """Utility suites."""
    repairs: tuple[Path, ...] = ()
    """Folders of repairs to compare with the bare model."""
    adaptive: tuple[str, ...] = ()
    """Image attacks to make against the bare model and through every repair, as
    `care.evaluation.adaptive` reads them."""
    judges: tuple[str, ...] = (RULES,)
    """Judges as `care.judges.registry` reads them; the first one's outcomes make the table."""
    labels: Path | None = None
    """Answers with labels by hand, to correct rates for the judges' errors."""
    fitted_on: tuple[str, ...] = ()
    """Suites that the repairs were fitted on, to look for near leaks too; of the small world's the
    fit split is meant."""
    allow_leaks: bool = False
    """Go on although test goals were fitted on."""
    margin: float = MARGIN
    """Loss of utility that is accepted."""
    out: Path = Path("runs/evaluate")
    """Folder of the run."""
    seed: int = 0
    """Seed of everything that is drawn."""
    resume: bool = False
    """Go on with what is in the folder."""
    revision: str | None = None
    """Revision of the model on the Hub."""
    dtype: str = "auto"
    """Floating-point type of the model."""
    device_map: str | None = None
    """As in transformers."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings."""
    batch_size: int | None = None
    """Examples that are answered together; None: 64 of the embedded model's, 16 of another's."""
    max_new_tokens: int | None = None
    """Length of an answer in tokens; None: 24 of the embedded model's, 512 of another's."""
    limit: int | None = None
    """Most examples of a suite."""
    thoughts: tuple[str, ...] = ()
    """Further tags between which the model thinks before it answers, each OPEN…CLOSE."""

    def __post_init__(self) -> None:
        require(
            self,
            {"batch_size": 1, "max_new_tokens": 1, "limit": 1, "seed": 0},
            {"batch_size": MAX_BATCH, "max_new_tokens": MAX_BATCH, "limit": MANY, "seed": MAX_SEED},
        )
        if not 0.0 < self.margin < 1.0:
            raise UsageError(f"the margin must lie between 0 and 1, got {self.margin}")
        known_tags(self.thoughts)
        if not self.judges:
            raise UsageError("an evaluation needs a judge; the offline one is called rules")
        shown = [shown_name(wanted) for wanted in self.judges]
        if len(set(shown)) < len(shown):
            raise UsageError(
                f"two judges have one name in {', '.join(shown)}; give one another with as=NAME"
            )
        defenses = [UNDEFENDED, *_names(self.repairs)]
        if len(set(defenses)) < len(defenses):
            raise UsageError(
                f"two defenses have one name in {', '.join(defenses)}, where {UNDEFENDED} is the "
                "bare model; name each repair once, or give its folder another name"
            )
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise UsageError(
                f"two attacks have one name in {', '.join(names)}; give one another with as=NAME"
            )

    @property
    def attacks(self) -> list[ImageAttack]:
        """The image attacks; UsageError for one that can't be read."""
        return [ImageAttack.parse(wanted) for wanted in self.adaptive]

    @property
    def defenses(self) -> dict[str, Path | None]:
        """The bare model and the repairs, by their names in tables."""
        return {UNDEFENDED: None, **dict(zip(_names(self.repairs), self.repairs, strict=True))}

    @property
    def cuts_refusals(self) -> bool:
        """Whether an answer ends as soon as it refuses."""
        return self.judges == (RULES,)

    def job(self) -> Job:
        """The part that says which model and how it answers."""
        length = 24 if self.model is None else 512
        return Job(
            model=self.model,
            revision=self.revision,
            out=self.out,
            seed=self.seed,
            resume=self.resume,
            dtype=self.dtype,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens or length,
            thoughts=self.thoughts,
        )

    def config(self) -> dict[str, Any]:
        """Everything that decides the answers, for the manifest."""
        kept = {"model", "suites", "utility", "repairs", "seed", "revision", "dtype", "limit"}
        kept |= {"device_map", "trust_remote_code"}
        kept |= {name for name in ("adaptive", "thoughts") if getattr(self, name)}
        facts = {key: value for key, value in asdict(self).items() if key in kept}
        facts["repairs"] = [str(path) for path in self.repairs]
        job = self.job()
        return facts | {
            "batch_size": job.batch,
            "max_new_tokens": job.max_new_tokens,
            "cuts_refusals": self.cuts_refusals,
        }


def evaluate(job: EvaluationJob, progress: Bar | None = None) -> dict[str, Any]:
    """Answer, judge and tabulate; the scorecard, which is also written to table.json."""
    suites = chosen_suites(job.suites, job.utility, job.model, job.limit, job.seed)
    labels = read_labels(job.labels) if job.labels else None  # before hours of work
    for wanted in job.judges:
        check_judge(wanted)
    requests = held_out(job.attacks, job.suites, job.limit, job.seed)
    tested = list({suite.name: suite for suite in (*requests, *suites)}.values())
    repairs = {name: path for name, path in job.defenses.items() if path is not None}
    for path in repairs.values():
        Repair.load(path)  # a damaged one shows before the model is loaded
    leaking = repair_leaks(repairs, tested, job.allow_leaks)
    if not job.allow_leaks:
        check_goals(job.attacks, job, requests)
        refuse_leaks([fitted_suite(name) for name in job.fitted_on], tested)
    with Run(job.out, resume=job.resume, config=job.config()) as run:
        run.pin("suites", {suite.name: suite_digest(suite) for suite in tested})
        run.pin("repairs", {name: _digest_of(path) for name, path in repairs.items()})
        _record(run, job, suites, leaking)
        rules = rules_of(job)
        suites = _answer(job, run, suites, requests, rules, progress)
        gc.collect()  # the model makes room for the judges
        pictures = {(s.name, e.id): e for s in suites for e in s}
        return _judge_and_tabulate(
            run, job.judges, rules, labels, pictures, job.margin, job.seed, False, progress
        )


def rules_of(job: Any) -> RulesJudge:
    """The offline judge for answers of a job's model."""
    return rules_for(job.model, job.dtype, job.thoughts)


def rejudge_run(
    path: Path,
    judges: Sequence[str],
    *,
    labels: Path | None = None,
    margin: float = MARGIN,
    retry: bool = False,
    thoughts: Sequence[str] = (),
    out: Path | None = None,
    progress: Bar | None = None,
) -> dict[str, Any]:
    """Judge a finished run's answers again and write its table.json anew; the scorecard.

    `thoughts` are further tags around thoughts, each OPEN…CLOSE; by default those of the run.
    The first of `judges` that judges answers makes the main table. With `out` the run is copied
    there first and left as it is. Raises UsageError for a folder that isn't a run or an `out` that
    holds something, and what `care.evaluation.rejudge.rejudge` raises.
    """
    hand = read_labels(labels) if labels else None
    known_tags(thoughts)
    for wanted in judges:
        check_judge(wanted)  # before anything is written
    if not (path / MANIFEST).is_file():
        raise UsageError(f"There is no run in {path}; pass the folder of a finished evaluation.")
    path = copy_run(path, out) if out is not None else path
    with Run(path, resume=True) as run:
        config = run.manifest["config"]
        if config.get("cuts_refusals", True) and any(not w.startswith(RULES) for w in judges):
            warnings.warn(
                "The answers of this run end where they refuse; a judge that reads whole answers "
                "sees less than its protocol says.",
                stacklevel=1,
            )
        job = Job(
            model=config.get("model"),
            dtype=config.get("dtype", "auto"),
            thoughts=tuple(thoughts or config.get("thoughts", ())),
        )
        examples = None
        if any(map(needs_images, judges)):
            asked = asked_suites(run.path, config, [row["suite"] for row in run.rows()])
            examples = {(s.name, e.id): e for s in asked for e in s}
        return _judge_and_tabulate(
            run, judges, rules_of(job), hand, examples, margin, config.get("seed", 0), retry,
            progress,
        )  # fmt: skip


# -- suites --------------------------------------------------------------------------------------


def asked_suites(path: Path, config: Mapping[str, Any], seen: Sequence[str]) -> list[Suite]:
    """The suites of a run in the folder `path`, loaded again for who looks at their pictures.

    `config` is that of its manifest; the suites that are `seen` in its rows serve where it names
    none.
    """
    limit, seed = config.get("limit"), config.get("seed", 0)
    named, attacks = config.get("suites", ()), _attacks(config)
    requests = held_out(attacks, named, limit, seed)
    made = image_suites(attacks, path, _defenses(config), requests)
    ours = {suite.name for suite in made}
    names = [*named, *config.get("utility", ())]
    names = names or [name for name in dict.fromkeys(seen) if name not in ours]
    return [*(load_suite(name, limit=limit, seed=seed) for name in names), *made]


def _attacks(config: Mapping[str, Any]) -> list[ImageAttack]:
    return [ImageAttack.parse(wanted) for wanted in config.get("adaptive", ())]


def _defenses(config: Mapping[str, Any]) -> list[str]:
    """Names of the bare model and the repairs of a run."""
    return [UNDEFENDED, *_names([Path(path) for path in config.get("repairs", ())])]


# -- answers and judgements ----------------------------------------------------------------------


def _answer(
    job: EvaluationJob,
    run: Run,
    suites: Sequence[Suite],
    requests: Sequence[Suite],
    rules: RulesJudge,
    progress: Bar | None,
) -> list[Suite]:
    """Answer all suites and the held-out `requests` beside the image attacks' pictures; returns
    every suite that was asked."""
    attacks, places = job.attacks, job.defenses
    vlm = load_pinned(run, job.model, lambda: load_model(job.job()))
    defenses = [
        (name, None if path is None else Repair.load(path, vlm)) for name, path in places.items()
    ]
    make_images(attacks, job, run, vlm, progress)
    made = image_suites(attacks, run.path, list(places), requests)
    run.pin("suites", {suite.name: suite_digest(suite) for suite in made})
    facts = {suite.name: suite.facts() for suite in made}
    run.record(suites=run.manifest["suites"] | facts)
    suites = [*suites, *made]
    with run.stage("evaluation"):
        answer_and_judge(
            vlm,
            suites,
            defenses,
            judge=rules,
            run=run,
            seed=job.seed,
            batch_size=job.job().batch,
            max_new_tokens=job.job().max_new_tokens,
            stop=certainly_refused if job.cuts_refusals else None,
            progress=progress,
        )
    record_identity(run, rules)
    return suites


def _judge_and_tabulate(
    run: Run,
    wanted: Sequence[str],
    rules: RulesJudge,
    labels: list[dict[str, Any]] | None,
    examples: Any,
    margin: float,
    seed: int,
    retry: bool,
    progress: Bar | None,
) -> dict[str, Any]:
    reports: list[dict[str, Any]] = []
    names: list[str] = []
    verdicts = open_verdicts(run)
    try:
        for judge_wanted in wanted:
            judge = load_judge(judge_wanted, rules)
            about_answers = getattr(judge, "subject", "answer") == "answer"
            if judge is not rules:
                with run.stage(f"judge {judge.name}"):
                    rejudge(run, judge, verdicts, examples=examples, retry=retry, progress=progress)
            if about_answers:
                names.append(judge.name)
                if labels and not getattr(judge, "reads_images", False):
                    reports.append(with_labels(labels, judge))
            del judge
            gc.collect()
        tree = _tree(run, verdicts, names, reports, margin, seed)
    finally:
        verdicts.close()
    for sentence in tree["warnings"]:
        warnings.warn(sentence, stacklevel=1)
    run.write(TABLE, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    return tree


def _tree(
    run: Run,
    verdicts: Rows,
    names: Sequence[str],
    reports: Sequence[dict[str, Any]],
    margin: float,
    seed: int,
) -> dict[str, Any]:
    rows: list[Row] = run.rows()
    check_rows(rows, ROW, run.path / ROWS)
    if not rows:
        raise DataError(f"The run in {run.path} holds no judged answers; evaluate first.")
    accuracies = {report["judge"]: JudgeAccuracy(**report["counts"]) for report in reports}
    tree = scorecard(
        rows,
        verdicts.all(),
        primary=names[0] if names else RULES,
        margin=margin,
        accuracies=accuracies,
        seed=seed,
    )
    kept = ("model", "seed", "suites", "judges", "leaks", "repair_leaks", "pinned")
    facts = {key: run.manifest.get(key) for key in kept}
    config = run.manifest["config"]
    found = threats(_attacks(config), run.path, _defenses(config), tree["suites"])
    more = {"labels": list(reports), "threats": found, "run": facts, "warnings": _broken(rows)}
    return tree | more


def _broken(rows: list[Row]) -> list[str]:
    """A sentence for each defense whose answers are no answers, which a rate doesn't show."""
    cells: dict[str, list[str]] = {}
    table = Table(rows)
    for suite, defense in table.broken():
        cells.setdefault(defense, []).append(suite)
    failed = [
        f"No answer under {defense} to {suite} could be judged; the errors are in its rows."
        for suite in table.suites
        for defense in table.defenses
        if table.has(suite, defense)
        and table.errors(suite, defense)
        and not sum(table.outcomes(suite, defense).values())
    ]
    return failed + [
        f"Nearly all answers under {defense} to {', '.join(suites)} are degenerate (broken text), "
        "so that its rates there say nothing about safety."
        for defense, suites in cells.items()
    ]


def _record(
    run: Run, job: EvaluationJob, suites: Sequence[Suite], leaking: dict[str, dict[str, Any]]
) -> None:
    run.record(
        **started(job.model or "embedded", job.seed),
        suites={suite.name: suite.facts() for suite in suites},
        leaks="allowed" if job.allow_leaks else "checked" if job.fitted_on else "not checked",
        repair_leaks=leaking,
    )


def _digest_of(repair: Path) -> str | None:
    from care.defenses.repair.repair import Repair

    return digest_of(Repair.load(repair))


def _names(repairs: Sequence[Path]) -> list[str]:
    """A name for each folder in tables: its last part, or all of it where that isn't enough."""
    short = [path.name or str(path) for path in repairs]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, repairs, strict=True)
    ]
