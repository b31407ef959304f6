"""The model card of an artefact: what it edits, its figures, threat model and known failures."""

from __future__ import annotations

from typing import Any

from care.defenses.repair.channel import Channel, RepairData


def card(repair: RepairData) -> str:
    """The model card: threat model, figures with intervals, known failures."""
    model = repair.manifest.get("model") or {}
    rows = "\n".join(
        f"| {c.site} | {c.modality} | {', '.join(c.scopes)} | {_gate_words(c)} "
        f"| {c.subspace.rank} | {c.strength:g} |"
        for c in repair.channels
    )
    figures = _figures(repair.manifest.get("evaluation") or {})
    return f"""---
library_name: care
base_model: {model.get("name", "unknown")}
tags: [safety, vision-language, activation-editing]
---
# {repair.name}: a repair for {model.get("name", "an unnamed model")}

Unsafe subspaces that are projected out of activations while the model runs; no weight is changed.
Use it with `care.Repair.load(folder)` and `with repair.applied(vlm): ...`.

| site | fitted on | edited tokens | gate | rank | strength |
|---|---|---|---|---|---|
{rows}

## Figures
{figures}

## Threat model
The attacker chooses picture and text, and knows neither the repair nor its subspaces: attack
pictures were optimised against the unrepaired model. An attacker who optimises through the repair
is not covered by these figures.

## Known failures
A repair removes what its fitting data show. Attacks of another kind, other languages and long
conversations were not measured. Judges are imperfect: read answers before you rely on a rate.
"""


def _gate_words(channel: Channel) -> str:
    """The families of attacks for which the gate of a channel opens."""
    if channel.gate is None:
        return "none"
    return ", ".join(channel.gate.families) or f"{len(channel.gate.low)} filters"


def _figures(evaluation: dict[str, Any]) -> str:
    suites = evaluation.get("suites", [])
    if not suites:
        return "Not evaluated yet."
    head = "| suite | n | before | after |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {s['name']} ({s['metric']}) | {s['n']} | {_interval(s['before'])} "
        f"| {_interval(s['after'])} |"
        for s in suites
    )


def _interval(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
