"""A whole diagnosis: which sites and neurons carry the attacks, how sure that is, what to mend.

    material    what the model answers to attacks and benign requests; those attacks that work
    parts       sites, causal effects, neurons and trust, on attacks that worked (`parts`)
    channels    at which sites an unsafe channel can be closed, on goals that aren't fitted on

The channels decide what a repair mends: `Repair.fit(…, sites=diagnosis.sites)`. `care diagnose`
does the same as stages of a run that survives a kill (`care.pipeline.workflow`). Not here: what
holds and what doesn't, in words (`care.report.conclusions`); that is said once, when a report is
written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from care.data.example import Example, Suite
from care.data.minimal_pairs import Pair
from care.defenses.material import ANSWER_TOKENS, gather
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.presets import PRESETS, Preset, RepairConfig
from care.defenses.repair.repair import Repair
from care.diagnosis.activation_means import goals_of
from care.diagnosis.channel_scan import found_channels, scan_channels, scanned_sites
from care.diagnosis.full_config import DiagnosisConfig
from care.diagnosis.parts import DiagnosisParts
from care.diagnosis.results import ChannelsFound, Diagnosis
from care.errors import DataError
from care.models.vlm import VLM
from care.runs.kept_batches import KeptBatches
from care.runs.progress import Bar, silent

if TYPE_CHECKING:
    from care.judges.rules import RulesJudge

Examples = Suite | Sequence[Example]

_HELD_OUT = 0.3
"""Share of the goals on which channels are scanned, where no other requests are given."""


def diagnose(
    vlm: VLM,
    attacks: Examples,
    benign: Examples,
    *,
    validation: tuple[Examples, Examples] | None = None,
    pairs: Sequence[Pair] = (),
    preset: Preset = "corrected",
    config: DiagnosisConfig | None = None,
    judge: RulesJudge | None = None,
    batch_size: int = 16,
    max_new_tokens: int = ANSWER_TOKENS,
    progress: Bar | None = None,
) -> Diagnosis:
    """Find where a model is unsafe, and at which sites a repair should mend it.

    Parameters:
        validation: attacks and benign requests with other goals, on which channels are scanned and
            the neurons to suppress are chosen; by default those of three in ten goals, which are
            then left out of everything else.
        pairs: attacks and their benign counterparts, of which causal effects are taken.
        preset: how the channels are fitted that are scanned; those without a gate have none, and
            the sites of `paper` are those that the ablation of layers points to.
        config: how much of everything; `care.diagnosis.full_config.BRIEF` is a short one.
        judge: sorts answers; by default the offline rules.
        max_new_tokens: length of the answers that are sorted.
        progress: makes the bars: `care.runs.progress.Progress`, or anything called the same way.

    Raises DataError and FitError where too few attacks work or goals differ.
    """
    config = config or DiagnosisConfig()
    asked, other = (list(attacks), list(benign)), validation
    if other is None:
        asked, other = _split(*asked)
    attacks, benign = asked
    held_out = (list(other[0]), list(other[1]))
    chosen = PRESETS[preset]
    scans = chosen.reads_decisions
    scanned = scanned_sites(vlm.anatomy.n_layers, chosen.kind) if scans else ()
    with (progress or silent)("material", len(attacks) + len(benign)) as bar:
        material = gather(
            vlm,
            attacks,
            benign,
            judge=judge,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            sites=scanned,
            progress=bar.advance,
        )
    fitter = Fitter(vlm, material, chosen, batch_size)
    parts = DiagnosisParts(
        vlm,
        [example for example, _ in material.complied],
        [example for example, _ in material.answered],
        pairs=pairs,
        validation=held_out,
        config=config,
        judge=judge,
        progress=progress,
    )
    sites, effects = parts.sites(), parts.effects()
    neurons = None
    if parts.reaches_neurons:
        neurons = parts.neurons(Repair.of(fitter.repair()) if config.repair_prompts else None)
    found = Diagnosis.of(sites, effects, neurons, parts.curves(effects, neurons))
    seed = config.sites.sampling.seed
    return found.with_channels(closed_channels(fitter, *held_out, seed=seed, progress=progress))


def scans_channels(config: RepairConfig) -> bool:
    """Whether the layers of a repair are chosen by closing its channels one by one.

    Without a gate they edit benign requests as they do attacks, and nothing tells sites apart.
    """
    return config.layers_by == "channels" and config.gate is not None


def closed_channels(
    fitter: Fitter,
    attacks: Sequence[Example],
    benign: Sequence[Example],
    *,
    seed: int = 0,
    progress: Bar | None = None,
    kept: KeptBatches | None = None,
) -> ChannelsFound | None:
    """What closing each unsafe channel alone does, on goals that `fitter` doesn't fit on.

    None where the configuration chooses its layers in another way.
    """
    if not scans_channels(fitter.config):
        return None
    layers = fitter.vlm.anatomy.n_layers
    sites, modalities = scanned_sites(layers, fitter.config.kind), fitter.modalities()
    fitter.prefetch(sites)
    with (progress or silent)("channels", len(attacks) + len(benign)) as bar:
        effects = scan_channels(
            fitter.vlm,
            sites,
            modalities,
            lambda site, modality: Repair.of(fitter.repair({modality: [site]})),
            attacks,
            benign,
            batch_size=fitter.batch_size,
            seed=seed,
            advance=bar.advance,
            kept=kept,
        )
    return found_channels(effects, layers)


def _split(
    attacks: Sequence[Example], benign: Sequence[Example]
) -> tuple[tuple[list[Example], list[Example]], tuple[list[Example], list[Example]]]:
    """Both kinds of requests to fit on, and both of the goals that are held out, by digest."""
    kept: list[list[Example]] = []
    held: list[list[Example]] = []
    for name, part in (("attacks", attacks), ("benign requests", benign)):
        for chosen, wanted in ((kept, False), (held, True)):
            goals = zip(part, goals_of(part), strict=True)
            chosen.append([example for example, goal in goals if _is_held_out(goal) == wanted])
        if not kept[-1] or not held[-1]:
            raise DataError(
                f"The {len(part)} {name} have too few goals for some of them to be held out, on "
                "which channels are scanned; add requests with other goals or pass `validation`."
            )
    return (kept[0], kept[1]), (held[0], held[1])


def _is_held_out(goal: str) -> bool:
    digest = hashlib.sha256(goal.strip().lower().encode()).hexdigest()
    return int(digest[:8], 16) / 16**8 < _HELD_OUT
