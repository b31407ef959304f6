"""The job behind `care evaluate` and `care judge`: answer, judge with several judges, tabulate.

    rows.jsonl, answers.jsonl   the run (`runs`), judged by the offline rules
    verdicts.jsonl              the other judges' verdicts on the same answers (`rejudge`)
    attacks/                    images made against each defense (`adaptive`)
    table.json                  the scorecard (`scorecard`)

The model is let go before a judge is loaded, so that a large judge fits where the model was.
Answers are cut as soon as they refuse only where the rules are the one judge: others are given
whole answers, as their protocols have it.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from care.attacks.variants import Search
from care.data.digests import digest_of, suite_digest
from care.data.example import Suite
from care.data.jsonl import ENDING
from care.data.registry import fitted_suite, load_suite
from care.defenses.loading import load_defense
from care.evaluation.adaptive import (
    check_goals,
    held_out,
    image_suites,
    make_images,
)
from care.evaluation.asked_attacks import (
    AskedVariants,
    ImageAttack,
    attacks_in_variants,
    image_attacks,
)
from care.evaluation.attack_parts import are_made, in_turns, take_over
from care.evaluation.config import (
    CONTROLS,
    RULES,
    EvaluationConfig,
    RejudgeConfig,
    StoredConfig,
    defense_names,
    read_config,
    stored_defenses,
)
from care.evaluation.controls import check_controls, write_controls
from care.evaluation.cost import cost, told
from care.evaluation.joined import Attacked, choose, joined_suites
from care.evaluation.leak_check import refuse_leaks, repair_leaks
from care.evaluation.parts import check_parts, write_parts
from care.evaluation.rejudge import record_identity
from care.evaluation.runner import evaluate as answer_and_judge
from care.evaluation.scores import RepairLeaks, Scorecard
from care.evaluation.suites import chosen_suites
from care.evaluation.tabulation import judge_and_tabulate, run_facts
from care.evaluation.variants import (
    check_variant_goals,
    fixed_suites,
    found_suites,
    search_variants,
    suites_of,
    variant_requests,
)
from care.judges.labels import read_labels
from care.judges.refusal import certainly_refused
from care.judges.registry import check_judge, needs_images
from care.judges.rules import RulesJudge, rules_for
from care.models.identity import load_pinned
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.runs.environment import started
from care.runs.manifest import check_is_run
from care.runs.merging import finished
from care.runs.progress import Bar
from care.runs.run import Run, copy_run
from care.runs.shards import Shard, ShardTurns
from care.typed import to_tree


def evaluate(
    job: EvaluationConfig,
    progress: Bar | None = None,
    tell: Callable[[str], None] | None = None,
) -> Scorecard:
    """Answer, judge and tabulate; the scorecard, which is also written to table.json.

    `tell` gets a sentence that says what attacks cost, before they begin.
    """
    labels = read_labels(job.judging.labels) if job.judging.labels else None  # before hours of work
    for wanted in job.judging.judges:
        check_judge(wanted)
    with _Evaluation.of(job).opened() as (run, asked):
        rules = rules_for(job.model)
        suites = _answer(job, run, asked, rules, progress, tell)
        gc.collect()  # the model makes room for the judges
        pictures = {(s.name, e.id): e for s in suites for e in s}
        return judge_and_tabulate(
            run, job.judging, rules, labels, pictures, job.run.seed, False, progress
        )


def answer_shard(
    job: EvaluationConfig, shard: Shard, progress: Bar | None = None
) -> tuple[Path, tuple[Shard, ...]]:
    """Answer and judge by the rules what is in one shard of the job; the folder of its run.

    Attacks come before: where other shards haven't made their turns of them yet, those are told,
    and nothing is answered.
    """
    own = replace(job.run, out=shard.folder(job.run.out))
    job = replace(job, run=own, shard=None)
    with _Evaluation.of(job).opened() as (run, asked):
        run.record(shard=str(shard))
        rules = rules_for(job.model)
        if are_made(job.attacks, job.in_variants):
            waiting = in_turns(run, shard, partial(_make_attacks, job, run, asked, progress))
            gc.collect()  # one model at a time
            if waiting:
                return run.path, waiting
        _answer(job, run, asked, rules, progress, None, shard)
        run.record(**finished(run))
        return run.path, ()


@dataclass(frozen=True)
class _Evaluation:
    """What is asked, checked before a model is loaded."""

    job: EvaluationConfig
    suites: list[Suite]
    """The suites that were named."""
    requests: list[Suite]
    """Those that image attacks are made for."""
    asked: list[Suite]
    """Those that are asked in variants."""
    leaking: Mapping[str, RepairLeaks]
    """Goals of the suites that repairs were fitted on."""

    @classmethod
    def of(cls, job: EvaluationConfig) -> Self:
        """Raises UsageError and DataError for what can't be asked."""
        suites = chosen_suites(job.suites, job.utility, job.model.name, job.limit, job.run.seed)
        requests = held_out(job.attacks, job.suites, job.limit, job.run.seed)
        asked = variant_requests(job.in_variants, job.suites, job.limit, job.run.seed)
        made = cls(job, suites, requests, asked, {})
        given = dict(zip(defense_names(job.repairs), job.repairs, strict=True))
        if job.parts:
            check_parts(job.repairs)
        if job.controls:
            check_controls(job.repairs)
        for path in given.values():
            load_defense(path)  # a damaged one shows before the model is loaded
        leaking = repair_leaks(given, made.tested, job.allow_leaks)
        if not job.allow_leaks:
            check_goals(job.attacks, job.model, job.run.seed, requests)
            check_variant_goals(job.in_variants, job.model, job.run.seed, asked)
            refuse_leaks([fitted_suite(name) for name in job.fitted_on], made.tested)
        return replace(made, leaking=leaking)

    @property
    def tested(self) -> list[Suite]:
        """Every suite once."""
        found = (*self.requests, *self.asked, *self.suites)
        return list({suite.name: suite for suite in found}.values())

    @contextmanager
    def opened(self) -> Iterator[tuple[Run, Self]]:
        """The run, held to what is asked; and what is asked, with attacks in variants that are the
        same for every defense."""
        job = self.job
        with Run(job.run.out, resume=job.run.resume, config=job.config()) as run:
            if job.parts:
                write_parts(job.repairs, run)
            repairs = {name: path for name, path in job.defenses.items() if name not in CONTROLS}
            fixed = fixed_suites(job.in_variants, self.asked)
            run.pin("suites", {suite.name: suite_digest(suite) for suite in (*self.tested, *fixed)})
            run.pin("repairs", {name: _digest_of(path) for name, path in repairs.items() if path})
            whole = replace(self, suites=[*self.suites, *fixed])
            _record(run, job, whole.suites, self.leaking)
            yield run, whole


def rejudge_run(asked: RejudgeConfig, progress: Bar | None = None) -> Scorecard:
    """Judge a finished run's answers again and write its table.json anew; the scorecard.

    The first judge that judges answers makes the main table. With `out` the run is copied there
    first and left as it is. Raises UsageError for a folder that isn't a run or an `out` that holds
    something, and what `care.evaluation.rejudge.rejudge` raises.
    """
    path, judges = asked.path, asked.judging.judges
    hand = read_labels(asked.judging.labels) if asked.judging.labels else None
    for wanted in judges:
        check_judge(wanted)  # before anything is written
    check_is_run(path)
    path = copy_run(path, asked.out) if asked.out is not None else path
    with Run(path, resume=True) as run:
        run_facts(run)  # what a table can't be made of shows before answers are judged
        config = read_config(run.manifest)
        if config.cuts_refusals and any(not w.startswith(RULES) for w in judges):
            warnings.warn(
                "The answers of this run end where they refuse; a judge that reads whole answers "
                "sees less than its protocol says.",
                stacklevel=1,
            )
        model = ModelSpec(
            config.model, dtype=config.dtype, thoughts=asked.thoughts or config.thoughts
        )
        examples = None
        if any(map(needs_images, judges)):
            suites = asked_suites(run.path, config, [row["suite"] for row in run.rows()])
            examples = {(s.name, e.id): e for s in suites for e in s}
        return judge_and_tabulate(
            run,
            asked.judging,
            rules_for(model),
            hand,
            examples,
            config.seed,
            asked.retry,
            progress,
        )


# -- suites --------------------------------------------------------------------------------------


def asked_suites(path: Path, config: StoredConfig, seen: Sequence[str]) -> list[Suite]:
    """The suites of a run in the folder `path`, loaded again for who looks at their pictures.

    `config` is that of its manifest; the suites that are `seen` in its rows serve where it names
    none.
    """
    limit, seed, named = config.limit, config.seed, config.suites
    images, in_variants = image_attacks(config.adaptive), attacks_in_variants(config.adaptive)
    defenses = stored_defenses(config)
    requests = held_out(images, named, limit, seed)
    asked = variant_requests(in_variants, named, limit, seed)
    made = image_suites(images, path, defenses, requests)
    made += fixed_suites(in_variants, asked) + found_suites(in_variants, path, defenses, asked)
    made += joined_suites(_attacked(path, defenses, in_variants, asked, images, requests))
    ours = {suite.name for suite in made}
    names = [*config.suites, *config.utility]
    if not names or config.test_length is not None:  # the latter of `care repair`
        files = {Path(name).stem: name for name in config.named if name.endswith(ENDING)}
        names = [files.get(name, name) for name in dict.fromkeys(seen) if name not in ours]
    return [*(load_suite(name, limit=limit, seed=seed) for name in names), *made]


# -- answers and judgements ----------------------------------------------------------------------


def _answer(
    job: EvaluationConfig,
    run: Run,
    evaluation: _Evaluation,
    rules: RulesJudge,
    progress: Bar | None,
    tell: Callable[[str], None] | None,
    shard: Shard | None = None,
) -> list[Suite]:
    """Answer all suites, the held-out requests beside the image attacks' pictures and those that
    attacks in variants ask; returns every suite that was asked."""
    attacks, places = job.attacks, job.defenses
    requests, asked = evaluation.requests, evaluation.asked
    vlm = load_pinned(run, job.model.name, job.model.load)
    if job.controls:
        write_controls(job, run, vlm)
    defenses = [
        (name, None if path is None else load_defense(path, vlm)) for name, path in places.items()
    ]
    if tell is not None and job.adaptive:
        pairs = zip(job.in_variants, asked, strict=True), zip(attacks, requests, strict=True)
        total = cost(list(pairs[0]), list(pairs[1]), dict(defenses))
        tell(told(total, vlm, [*requests, *asked][0], job.answer_length, job.batch))
    take_over(run, shard)
    _make(job, run, evaluation, vlm, progress)
    made = image_suites(attacks, run.path, list(places), requests)
    made += found_suites(job.in_variants, run.path, list(places), asked)
    _made(run, made)
    suites = [*evaluation.suites, *made]
    drawn = suites_of(job.in_variants, list(places))

    def ask(some: Sequence[Suite], temperature: float) -> None:
        answer_and_judge(
            vlm,
            some,
            defenses,
            judge=rules,
            run=run,
            seed=job.run.seed,
            batch_size=job.batch,
            max_new_tokens=job.answer_length,
            stop=certainly_refused if job.cuts_refusals else None,
            temperature=temperature,
            progress=progress,
            shard=shard,
        )

    by_temperature: dict[float, list[Suite]] = {}
    for suite in suites:
        temperature = drawn[suite.name].attack.draws if suite.name in drawn else 0.0
        by_temperature.setdefault(temperature, []).append(suite)
    with run.stage("evaluation"):
        for temperature, some in by_temperature.items():
            ask(some, temperature)
        attacked = _attacked(run.path, places, job.in_variants, asked, attacks, requests)
        if attacked.joining():
            choose(attacked, run)
            joined = joined_suites(attacked)
            _made(run, joined)
            ask(joined, 0.0)
            suites = [*suites, *joined]
    record_identity(run, rules)
    return suites


def _make_attacks(
    job: EvaluationConfig,
    run: Run,
    evaluation: _Evaluation,
    progress: Bar | None,
    turns: ShardTurns,
) -> None:
    """This process's turns of the attacks, as far as their checkpoints."""
    vlm = load_pinned(run, job.model.name, job.model.load)
    if job.controls:
        write_controls(job, run, vlm)
    _make(job, run, evaluation, vlm, progress, turns)


def _make(
    job: EvaluationConfig,
    run: Run,
    evaluation: _Evaluation,
    vlm: VLM,
    progress: Bar | None,
    turns: ShardTurns | None = None,
) -> None:
    """Descend and search what isn't there yet of every attack on every defense."""
    places, seed = job.defenses, job.run.seed
    make_images(job.attacks, places, run, job.model, seed, vlm, progress, turns)
    identity = run.manifest["pinned"]["model"]
    of = Search(run.path, job.model, seed, identity, job.max_new_tokens, turns)
    search_variants(job.in_variants, evaluation.asked, places, run, of, vlm, progress)


def _made(run: Run, suites: Sequence[Suite]) -> None:
    """Hold the run to suites that were made in it, and tell what they are."""
    run.pin("suites", {suite.name: suite_digest(suite) for suite in suites})
    facts = {suite.name: suite.facts() for suite in suites}
    run.record(suites=run.manifest["suites"] | facts)


def _attacked(
    path: Path,
    defenses: Iterable[str],
    in_variants: Sequence[AskedVariants],
    asked: Sequence[Suite],
    images: Sequence[ImageAttack],
    requests: Sequence[Suite],
) -> Attacked:
    pairs = list(zip(in_variants, asked, strict=True)), list(zip(images, requests, strict=True))
    return Attacked(path, list(defenses), *pairs)


def _record(
    run: Run, job: EvaluationConfig, suites: Sequence[Suite], leaking: Mapping[str, RepairLeaks]
) -> None:
    run.record(
        **started(job.model.shown, job.run.seed),
        suites={suite.name: suite.facts() for suite in suites},
        leaks="allowed" if job.allow_leaks else "checked" if job.fitted_on else "not checked",
        repair_leaks=to_tree(leaking),
    )


def _digest_of(repair: Path) -> str | None:
    return digest_of(load_defense(repair))
