"""Folding in: a repair that has learned from new requests what a fit with them would have.

The model answers the new requests alone. Their answers are sorted as those to fit on are
(`care.defenses.material`), their activations are read at the sites of channels and monitors, and
join the rows that the repair remembers (`memory`): subspaces, gates, detectors and thresholds are
then those of a fit on old rows and new ones. Sites, poolings and settings stay, and so does what
the choice among sites rested on: where new attacks should be read elsewhere, a fit anew finds it.
Attacks of a new suite are a family of their own once there are 8 that worked; until then they wait,
and what monitors make of them goes with other small families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from care.data.contamination import goals_told
from care.data.digests import example_digest, picture_digests, request_digest
from care.data.example import Example
from care.defenses.activations import at_decision
from care.defenses.material import ANSWER_TOKENS, CLASSES, Sorted, ask, check_kinds
from care.defenses.monitors.choosing import evenly, labelled_answer, labelled_request
from care.defenses.monitors.fitting import MonitorConfig
from care.defenses.repair.channel import Channel, RepairData
from care.defenses.repair.families import Told
from care.defenses.repair.fitting_data import said
from care.defenses.repair.memory import DecisionMemory, Memory, told_of
from care.errors import FitError, UsageError
from care.judges.rules import RulesJudge
from care.models.sites import Site
from care.typed import Count, to_tree

if TYPE_CHECKING:
    from care.models.vlm import VLM
    from care.runs.kept_batches import KeptBatches

_DIGITS = 16
"""Digits of the digests of examples in a manifest."""


@dataclass(frozen=True)
class Folded:
    """What was folded in at one time."""

    complied: Count
    """Attacks that worked."""
    refused: Count
    """Malicious requests that were refused."""
    answered: Count
    """Benign requests that were answered."""
    known: Count
    """Requests that were fitted on already, and so left out."""
    families: Mapping[str, Count]
    """Attacks that worked, by family."""
    waiting: Mapping[str, Count]
    """Attacks by family, of all times, of those that are still too few for one of their own."""
    unserved: Mapping[str, Count]
    """Attacks that worked and that no channel acts on, since it has none of their modality."""


def fold_in(
    repair: RepairData,
    vlm: VLM,
    attacks: Sequence[Example],
    benign: Sequence[Example] = (),
    *,
    judge: RulesJudge | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    kept: KeptBatches | None = None,
) -> RepairData:
    """The repair with the model's own answers to new requests folded in.

    Answers are as long as those that the repair was fitted on, unless `max_new_tokens` says
    otherwise. Batches that are `kept` aren't asked again. UsageError for a repair without a
    memory; FitError where there is nothing to learn from: requests that were fitted on before, or
    attacks none of which worked and nothing benign.
    """
    check_remembers(repair)
    check_kinds(attacks, benign)
    new = check_new(repair, [attacks, benign])
    answers = ask(
        vlm,
        new,
        judge=judge,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens or answer_length(repair),
        sites=sorted(_sources(repair)),
        progress=progress,
        kept=kept,
    )
    return folded(repair, vlm, answers, len(attacks) + len(benign) - len(new), batch_size)


def answer_length(repair: RepairData) -> int:
    """Tokens of the answers that a repair was fitted on, 24 where its artefact doesn't say."""
    return repair.manifest.get("fitted_on", {}).get("max_new_tokens") or ANSWER_TOKENS


def folded(
    repair: RepairData, vlm: VLM, answers: Sorted, known: int = 0, batch_size: int = 32
) -> RepairData:
    """The repair with answers that are there folded in; those that were before are left out.

    `known` were left out already. Raises what `fold_in` does.
    """
    memory, before = check_remembers(repair), answers.count
    answers = new_to(repair, answers)
    known += before - answers.count
    if before and not answers.count:
        raise _nothing_new(repair, before)
    if not answers.complied and not answers.answered:
        raise FitError(
            f"No new request is one to learn from: {vlm.name} gave no harmful answer to an attack "
            f"(it refused {len(answers.refused)}) and answered nothing benign; pass attacks that "
            "work, or benign requests that it answers."
        )
    if memory.decisions is not None and repair.channels:
        memory = replace(memory, decisions=_decisions(memory.decisions, vlm, answers, batch_size))
    memory = replace(memory, monitors=_monitors(repair, memory, vlm, answers, batch_size))
    channels = tuple(_channel(channel, memory.decisions) for channel in repair.channels)
    by_key = {each.key: each.monitor() for each in memory.monitors}
    monitors = tuple(by_key[m.reads, m.site, m.pooling] for m in repair.monitors)
    told = _told(repair, memory, answers, known)
    return replace(
        repair,
        channels=channels,
        monitors=monitors,
        memory=memory,
        manifest=_manifest(repair.manifest, answers, told),
    )


def check_remembers(repair: RepairData) -> Memory:
    """The memory of a repair; UsageError where it doesn't reach to every channel and monitor."""
    memory = repair.memory
    if memory is not None:
        there = set() if memory.decisions is None else set(memory.decisions.rows)
        kept = {each.key for each in memory.monitors}
        sources = {_source(memory, channel.site) for channel in repair.channels}
        if sources <= there and {(m.reads, m.site, m.pooling) for m in repair.monitors} <= kept:
            return memory
    raise UsageError(
        f"{repair.name} doesn't remember what it was fitted on, as repairs of earlier versions, "
        "those without families of attacks and those from the Hub don't, so nothing can be folded "
        "into it; fit anew on old and new requests with `care fit` or Repair.fit."
    )


def check_new(repair: RepairData, asked: Iterable[Iterable[Example]]) -> list[Example]:
    """The requests that a repair wasn't fitted on; FitError if there is none."""
    known, examples = _knows(repair), [example for part in asked for example in part]
    new = [example for example in examples if not known(example)]
    if not new:
        raise _nothing_new(repair, len(examples))
    return new


def _nothing_new(repair: RepairData, count: int) -> FitError:
    return FitError(
        f"There is nothing new to fold into {repair.name}: all {count} requests were fitted on "
        "already; pass others."
    )


def updates_of(repair: RepairData) -> list[dict[str, Any]]:
    """What was folded in so far, each time as `Folded` has it."""
    return list(repair.manifest.get("updates", []))


def new_to(repair: RepairData, answers: Sorted) -> Sorted:
    """The answers to requests that a repair wasn't fitted on."""
    return answers.without(_knows(repair))


def _knows(repair: RepairData) -> Callable[[Example], bool]:
    """Whether a repair was fitted on an example, or on one that asks the same."""
    fitted = repair.manifest.get("fitted_on", {})
    examples, requests = (set(fitted.get(key, ())) for key in ("examples", "requests"))
    return lambda e: _digest(e) in examples or (bool(requests) and request_digest(e) in requests)


def _sources(repair: RepairData) -> set[Site]:
    memory = check_remembers(repair)
    return {_source(memory, channel.site) for channel in repair.channels}


def _source(memory: Memory, site: Site) -> Site:
    return site if memory.decisions is None else memory.decisions.source(site)


def _digest(example: Example) -> str:
    return example_digest(example)[:_DIGITS]


def _decisions(
    memory: DecisionMemory, vlm: VLM, answers: Sorted, batch_size: int
) -> DecisionMemory:
    told = [
        told_of((e, "|".join(picture_digests(e))) for e, _ in getattr(answers, name))
        for name in CLASSES
    ]
    sites = [site for site in memory.rows if site not in answers.decisions]
    rows = dict(answers.decisions)
    if sites:
        parts = [[e for e, _ in getattr(answers, name)] for name in CLASSES]
        read = [at_decision(vlm, part, sites, batch_size) for part in parts]
        rows |= {site: tuple(part[site] for part in read) for site in sites}
    return memory.joined(told, rows)


def _monitors(
    repair: RepairData, memory: Memory, vlm: VLM, answers: Sorted, batch_size: int
) -> tuple[Any, ...]:
    """The memories of the repair's monitors with new requests and answers, of each suite and kind
    as many, evenly spread, as a fit takes."""
    heard = evenly(said(answers), MonitorConfig.most)
    stated = [each for e, _, _ in heard if (each := labelled_request(e)) is not None]
    spoken = [labelled_answer(*each) for each in heard]
    watched = {(m.reads, m.site, m.pooling) for m in repair.monitors}
    return tuple(
        each.joined(vlm, stated if each.reads == "request" else spoken, batch_size)
        for each in memory.monitors
        if each.key in watched
    )


def _channel(channel: Channel, memory: DecisionMemory | None) -> Channel:
    assert memory is not None  # `check_remembers`
    subspace, gate = memory.fitted(channel.site, channel.modality == "image")
    return replace(channel, subspace=subspace, gate=gate)


def _told(repair: RepairData, memory: Memory, answers: Sorted, known: int) -> Folded:
    served = {channel.modality for channel in repair.channels}
    worked = [(Told.of(e, "").family, "image" if e.images else "text") for e, _ in answers.complied]
    waiting = {} if memory.decisions is None else memory.decisions.waiting()
    return Folded(
        complied=len(answers.complied),
        refused=len(answers.refused),
        answered=len(answers.answered),
        known=known,
        families=Counter(family for family, _ in worked),
        waiting=waiting,
        unserved=Counter(f for f, modality in worked if repair.channels and modality not in served),
    )


def _manifest(manifest: Mapping[str, Any], answers: Sorted, told: Folded) -> dict[str, Any]:
    """The manifest with what was folded in, so that nobody tests on it; figures of before go."""
    examples = [e for name in CLASSES for e, _ in getattr(answers, name)]
    fitted = dict(manifest.get("fitted_on", {}))
    for name in CLASSES:
        fitted[name] = fitted.get(name, 0) + len(getattr(answers, name))
    fitted["examples"] = sorted({*fitted.get("examples", ()), *map(_digest, examples)})
    fitted["requests"] = sorted({*fitted.get("requests", ()), *map(request_digest, examples)})
    new, old = goals_told(examples), fitted.get("goals", {})
    if old.get("scheme", new["scheme"]) == new["scheme"]:
        new["digests"] = sorted({*old.get("digests", ()), *new["digests"]})
    fitted["goals"] = new
    others = {key: value for key, value in manifest.items() if key != "evaluation"}
    updates = [*manifest.get("updates", []), to_tree(told)]
    return others | {"fitted_on": fitted, "updates": updates}
