"""`care export --format merged` or `lora`: a repair as weights, and what that leaves out of it.

What weights can't hold is an error that names it, unless it is left out on purpose (`drop`). Then
bare model, whole repair and exported weights answer a small probe, and the card tells the rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from care.data.example import Suite
from care.defenses.base import Defense
from care.defenses.export_facts import ExportFacts, ProbeRates
from care.defenses.exporting import check_lora, folded_sites, write_export
from care.defenses.folded_weights import Fold, FoldedWeights, bias_settings, folds, unfoldable
from care.defenses.linear_parts import acting_at, affine_maps, obstacles, refusal, without
from care.defenses.loading import load_defense
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.evaluation.config import UNDEFENDED
from care.evaluation.leak_check import repair_leaks
from care.evaluation.model_checks import first_tokens, greatest_gap
from care.evaluation.probe import NAME, mean_rate, probe, probe_suites, requests
from care.judges.refusal import certainly_refused
from care.judges.rules import rules_for
from care.models.identity import model_facts
from care.pipeline.config import ExportJob
from care.runs.progress import Bar

if TYPE_CHECKING:
    from care.models.vlm import VLM

_EXPORTED = "exported"


def export(job: ExportJob, progress: Bar | None = None) -> ExportFacts:
    """Write a repair as weights; the facts of its card.

    Raises UsageError for what weights can't hold and nobody left out, and what loading raises.
    """
    repair = _repair(job)
    kept = without(repair, job.drop)
    if found := obstacles(kept):  # before the model is loaded
        raise UsageError(refusal(found, job.drop))
    suites = probe_suites(job.probe, job.model, job.seed)
    if job.drop:
        repair_leaks({NAME: job.repair}, suites)
    vlm = job.model.load()
    repair.check(vlm)
    kept = _foldable(vlm, kept, job)
    made = folds(vlm, affine_maps(kept))
    if job.format == "lora":
        check_lora(made)
    else:
        bias_settings(vlm, made)  # raises before anything is asked
    facts = ExportFacts(
        format=job.format,
        model=model_facts(vlm),
        repair=repair.name,
        digest=repair.digest(),
        maps=folded_sites(made),
        left_out=job.drop,
        gap=gap(vlm, kept, made, suites),
        probe=_loss(vlm, repair, made, suites, job, progress) if job.drop else (),
        figures=None if job.drop else repair.manifest.get("evaluation"),
    )
    write_export(vlm, made, facts, job.out)
    return facts


def gap(vlm: VLM, kept: Repair, made: Sequence[Fold], suites: Sequence[Suite]) -> float:
    """How far first tokens are from those under the edits, on a handful of requests, in nats."""
    examples = requests(suites, 6)
    with kept.applied(vlm):
        edited = first_tokens(vlm, examples)
    with FoldedWeights(made).applied(vlm):
        return greatest_gap(edited, first_tokens(vlm, examples))


def _repair(job: ExportJob) -> Repair:
    found = load_defense(job.repair)
    if not isinstance(found, Repair):
        raise UsageError(
            f"{job.repair} holds the defense {found.name}, and only repairs are exported as "
            "weights; pass the folder of a repair."
        )
    return found


def _foldable(vlm: VLM, kept: Repair, job: ExportJob) -> Repair:
    """The repair at the sites that some linear map writes; UsageError for others unless dropped."""
    bad = unfoldable(vlm, list(acting_at(kept)))
    if not bad:
        return kept
    if len(bad) == len(acting_at(kept)):
        why = "; ".join(one.why for one in bad.values())
        raise UsageError(f"Nothing of this repair can be folded into weights of {vlm.name}: {why}.")
    if "sites" not in job.drop:
        raise UsageError(refusal(list(bad.values()), job.drop))
    channels = tuple(channel for channel in kept.channels if channel.site not in bad)
    return replace(kept, channels=channels)


def _loss(
    vlm: VLM,
    repair: Repair,
    made: Sequence[Fold],
    suites: Sequence[Suite],
    job: ExportJob,
    progress: Bar | None,
) -> tuple[ProbeRates, ...]:
    defenses: list[tuple[str, Defense | None]] = [(NAME, repair), (_EXPORTED, FoldedWeights(made))]
    how: dict[str, Any] = {
        "batch_size": job.model.batch(None),
        "max_new_tokens": job.model.answer_length(job.probe.max_new_tokens),
        "seed": job.seed,
    }
    found = probe(
        vlm,
        suites,
        defenses,
        judge=rules_for(job.model),
        stop=certainly_refused,
        progress=progress,
        **how,
    )
    shown = {UNDEFENDED: "bare model", NAME: "the repair", _EXPORTED: "these weights"}
    return tuple(
        ProbeRates(
            name=told, asr=mean_rate(found, name, True), harmless=mean_rate(found, name, False)
        )
        for name, told in shown.items()
    )
