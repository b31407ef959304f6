"""What every stage of a main job asks of its model, counted before the job begins.

Counted are rows of the passes that the model will run, batches and padding left aside:

    prompts   whole texts: read before an answer, by a monitor, or again with something changed
    tokens    single positions: of answers, or the last of a prompt under an edit

All are upper bounds. Splits are known exactly; of how the model answers everything is assumed that
costs most: as many attacks work as a stage takes, every site that could be recommended is, each
answer has full length, and each that is watched raises an alarm and is begun anew. A pass that is
replayed from the layer on that changes counts as a prompt, and takes `share` of the time of one. A
backward pass counts as two prompts. What a search of settings asks (--tune), and judges other than
the rules, is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from care.data.example import Example, Suite
from care.data.minimal_pairs import Pair, by_kind
from care.data.small_world.suites import BASELINE
from care.defenses.controls import HARMLESS
from care.defenses.repair.presets import PRESETS, RepairConfig
from care.diagnosis.activation_means import goals_of, spread
from care.diagnosis.channel_scan import MOST_SITES, scanned_sites
from care.diagnosis.full import scans_channels
from care.diagnosis.full_config import BRIEF
from care.diagnosis.neurons.search import verified_count
from care.pipeline.config import RepairJob
from care.pipeline.selection import FINALISTS, QUANTILES
from care.pipeline.split_plan import Split
from care.pipeline.splits import pairs_of
from care.pipeline.stages import compared_suites

_CHECKED = 3
"""Passes that show of a batch whether replays suit the model."""
_WATCHED, _LISTENED = 7, 4
"""Texts that are read for an answer that is watched, begun anew after an alarm, or refused then:
the request by its monitors at once and by the model, the answer by two monitors, and all but the
first of these again."""
_ROW, _PER_TOKEN = 900, 5
"""Bytes of a judged row without its answer, and of a token of that."""


@dataclass(frozen=True)
class StageWork:
    """What a stage asks, at most."""

    name: str
    """The stage."""
    answers: int
    """Answers, what is there already not taken off."""
    tokens: int
    """Single positions: tokens of answers, and last positions of prompts under an edit."""
    prompts: int
    """Whole texts that are read, or run again with something changed."""
    share: float = 1.0
    """Time of one of these, of that of a whole pass, on average."""


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides how much is asked."""

    layers: int
    """Decoder layers."""
    width: int
    """Width of the residual stream."""
    neurons: int
    """All FFN neurons; 0 where they can't be reached."""


@dataclass(frozen=True)
class DiskUse:
    """Bytes that a job writes, at most, by what they are."""

    activations: int
    """Of the requests to fit on, at the decision position; twice while that stage is under way."""
    answers: int
    """Judged rows of validation and test."""
    artefact: int
    """The repair with what it remembers, and the monitors beside it."""


def stages_of(
    job: RepairJob, plan: Mapping[Split, Sequence[Suite]], shape: ModelShape | None
) -> list[StageWork]:
    """What each stage of the job asks, in order; without a shape only those that ask for answers.

    `plan` holds its suites without the pictures that are made.
    """
    config, length = PRESETS[job.preset], job.answer_length
    watched = config.monitors is not None
    fit, test = (sum(map(len, plan[split])) for split in ("fit", "test"))
    counted = sum(len(suite) for suite in plan["validation"] if suite.name != BASELINE)
    compared = sum(map(len, compared_suites(plan["test"])))
    finalists = 1 if config.gate is None else FINALISTS
    # Where decisions are read, that position is run by itself before the answer begins at it.
    found = [StageWork("material", fit, fit * (length + config.reads_decisions), fit)]
    if shape is not None:
        found += _diagnosis(job, plan, shape, config)
    found.append(_asked("selection", counted, length, 1 + finalists, watched))
    if watched:
        found += [_monitors(config, plan, counted)]
    found.append(_asked("evaluation", test, length, 2, watched, listened=watched))
    found.append(_asked("controls", compared, length, 4, watched))
    if shape is not None:
        pictured = [s for s in plan["test"] if any(e.images for e in s)]
        found.append(StageWork("attribution", 0, 0, 2 * len(pictured)))
    return found


def disk_of(
    job: RepairJob,
    plan: Mapping[Split, Sequence[Suite]],
    shape: ModelShape,
    stages: Sequence[StageWork],
) -> DiskUse:
    """What the job writes, from what its stages ask."""
    config = PRESETS[job.preset]
    fit = sum(map(len, plan["fit"]))
    row = 4 * shape.width
    sites = len(scanned_sites(shape.layers, config.kind)) if config.reads_decisions else 0
    asked = sum(each.answers for each in stages if each.name != "material")
    # Both modalities' sites remember the rows they were fitted on, and each of three monitors its
    # own, with readings at several lengths of what thresholds rest on.
    remembered = 2 * MOST_SITES * fit
    if config.monitors is not None:
        validation = sum(map(len, plan["validation"]))
        readings = max(1, math.ceil(math.log2(max(2, job.answer_length))))
        remembered += 2 * 3 * (fit + validation * readings)
    return DiskUse(
        activations=2 * fit * sites * row,
        answers=asked * (_ROW + _PER_TOKEN * job.answer_length),
        artefact=remembered * row,
    )


# -- stages ----------------------------------------------------------------------------------------


def _asked(
    name: str, examples: int, length: int, plain: int, watched: bool, listened: bool = False
) -> StageWork:
    """So many answers to each example, one more that is watched and one that is listened to."""
    each = plain + watched + listened
    texts = plain + _WATCHED * watched + _LISTENED * listened
    tokens = (plain + 2 * watched + listened) * length
    return StageWork(name, each * examples, tokens * examples, texts * examples)


def _diagnosis(
    job: RepairJob, plan: Mapping[Split, Sequence[Suite]], shape: ModelShape, config: RepairConfig
) -> list[StageWork]:
    attacks = [e for s in plan["fit"] if s.role == "attack" for e in s]
    benign = [e for s in plan["fit"] if s.role != "attack" for e in s]
    pairs = pairs_of(job)
    found = [
        _sites(shape, attacks, benign),
        _effects(shape, pairs),
    ]
    if shape.neurons:
        found.append(_neurons(shape, pairs, attacks, benign))
    if not scans_channels(config):
        return found
    modalities = len({bool(example.images) for example in attacks})
    asked = sum(map(len, plan["validation"]))
    closed = modalities * len(scanned_sites(shape.layers, config.kind))
    found.append(StageWork("channels", 0, asked * (1 + closed), asked))
    tried = (MOST_SITES + 1) ** modalities * len(QUANTILES)
    counted = sum(len(suite) for suite in plan["validation"] if suite.name != BASELINE)
    if config.gate is not None and tried > FINALISTS:
        found.append(StageWork("screening", 0, counted * (1 + tried), counted))
    return found


def _sites(shape: ModelShape, attacks: Sequence[Example], benign: Sequence[Example]) -> StageWork:
    """The scan of the sites: every removal, what is compared of them, and answers without some."""
    config = BRIEF.sites
    n, m = (
        len(part) if most is None else min(most, len(part))
        for part, most in ((attacks, config.max_attacks), (benign, config.max_benign))
    )
    removals = sum(len(config.components) * (shape.layers - size + 1) for size in config.windows)
    top = min(config.top_sites, 2 * shape.layers)
    answered = min(config.generate_examples, n) * (top + 1)
    clean = 1 + _CHECKED  # of every batch, as if each were one that is checked
    prompts = (n + m) * (1 + clean + removals) + n * (clean + shape.layers)
    if any(example.images for example in attacks):
        prompts += (n + m) * (clean + 2 * top)
    prompts += answered + min(config.generate_examples, n)
    tokens = answered * config.max_new_tokens
    return StageWork("sites", answered, tokens, prompts, share=0.5)


def _effects(shape: ModelShape, pairs: Sequence[Pair]) -> StageWork:
    """Both runs of each pair, with every site exchanged."""
    kinds = list(by_kind(pairs).values())[: BRIEF.pair_kinds]
    asked = [spread(own, BRIEF.pairs) for own in kinds]
    asked = [own for own in asked if len(set(goals_of([pair.attack for pair in own]))) > 1]
    each = 1 + _CHECKED + 2 * shape.layers + 2 * BRIEF.effects.check_sites
    return StageWork("effects", 0, 0, 2 * sum(map(len, asked)) * each, share=0.5)


def _neurons(
    shape: ModelShape,
    pairs: Sequence[Pair],
    attacks: Sequence[Example],
    benign: Sequence[Example],
) -> StageWork:
    """Estimates on one half of the prompts; on the other, the best neurons one by one."""
    most, kind = BRIEF.neuron_prompts, pairs[0].kind if pairs else ""
    own = [pair for pair in pairs if pair.kind == kind]
    paired = len(own) >= 4
    asked = min(most, len(own if paired else attacks))
    half, other = -(-asked // 2), asked // 2
    controlled = other if paired else min(most, len(benign)) // 2
    verified = verified_count(BRIEF.neurons, shape.neurons)
    # What is taken from others is read too: from donors, or as a mean over benign requests.
    prompts = half * (1 + paired + 2) + (other + controlled) * (1 + paired)
    prompts += 2 * other if paired else other + controlled  # where they fire
    prompts += 0 if paired else min(most, len(benign))
    tokens = other * (1 + 2 * verified) + controlled * (1 + verified)
    return StageWork("neurons", 0, tokens, prompts)


def _monitors(
    config: RepairConfig, plan: Mapping[Split, Sequence[Suite]], counted: int
) -> StageWork:
    """Requests, answers and both read as text: those to fit on, those to choose by, and harmless
    ones again for monitors with random directions and for what is remembered; of requests also for
    their refusal log-odds."""
    assert config.monitors is not None
    fit = sum(min(2 * config.monitors.most, len(suite)) for suite in plan["fit"])
    harmless = sum(min(HARMLESS, len(s)) for s in plan["fit"] if s.role != "attack")
    return StageWork("monitors", 0, 0, 3 * (fit + 2 * counted + harmless) + counted)
