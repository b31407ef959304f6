"""The report's tree, from a finished job's table, repair and diagnosis.

Keys and their meaning: `docs/report.md`. Nothing is measured here but token scores.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from PIL import Image

from care.data.example import Example
from care.data.small_world.suites import BASELINE
from care.defenses.repair.gate import Gate
from care.defenses.repair.repair import Repair
from care.diagnosis.token_attribution import sink_mask, text_scores, visual_scores
from care.evaluation.table import Table
from care.models.hooks import read
from care.models.sites import Role, Site
from care.models.vlm import VLM
from care.report.schema import SCHEMA
from care.statistics.intervals import Interval


def report_tree(
    table: Table,
    controls: Sequence[str],
    repair: Repair,
    preset: str,
    selection: Mapping[str, Any],
    diagnosis: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything of the report but examples, attribution and cost."""
    before, after = "none", "care"
    suites = [
        {
            "name": c.suite,
            "role": c.role,
            "n": c.n,
            "metric": c.metric,
            "before": _rate(c.before),
            "after": _rate(c.after),
            "discordant": list(c.discordant),
            "p_mcnemar": c.p_mcnemar,
            "p_holm": c.p_holm,
            "target": c.role == "attack" and c.suite != BASELINE,
        }
        for c in table.compare(before, after)
    ]
    return {
        "schema": SCHEMA,
        "title": f"care: {manifest.get('model', 'a model')} repaired",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "suites": suites,
        "outcomes": {
            s["name"]: {
                "before": table.outcomes(s["name"], before),
                "after": table.outcomes(s["name"], after),
            }
            for s in suites
        },
        "controls": {name: _control(table, name, suites) for name in controls},
        "diagnosis": dict(diagnosis),
        "repair": {
            "preset": preset,
            "channels": [_channel(channel) for channel in repair.channels],
            "selection": dict(selection),
        },
    }


def _rate(interval: Interval) -> dict[str, float]:
    return {"rate": interval.rate, "low": interval.low, "high": interval.high}


def _control(table: Table, name: str, suites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked = [s for s in suites if table.has(s["name"], name)]
    rates = {s["name"]: table.rate(s["name"], name).rate for s in asked}

    def mean(wanted: Any) -> float | None:
        found = [rates[s["name"]] for s in asked if wanted(s)]
        return sum(found) / len(found) if found else None

    return {
        "mean_asr": mean(lambda s: s["target"]),
        "utility": mean(lambda s: s["role"] == "utility"),
        "answered": mean(lambda s: s["role"] == "over_refusal"),
        "suites": rates,
    }


def _channel(channel: Any) -> dict[str, Any]:
    subspace = channel.subspace
    return {
        "site": str(channel.site),
        "modality": channel.modality,
        "scopes": list(channel.scopes),
        "rank": subspace.rank,
        "strength": channel.strength,
        "eigenvalues": [float(v) for v in subspace.eigenvalues[:32]],
        "null_quantile": subspace.null_quantile,
        "shrinkage": float(subspace.shrinkage),
        "condition": float(subspace.condition),
        "n_malicious": subspace.n_malicious,
        "n_benign": subspace.n_benign,
        "gate": None if channel.gate is None else _gate(channel.gate),
    }


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "families": list(gate.families),
        "low": gate.low.tolist(),
        "high": gate.high.tolist(),
        "open": dict(gate.opened),
        "open_benign": gate.opened_benign,
        "quantile": gate.quantile,
    }


def answer_pairs(
    table: Table, examples: Mapping[str, Example], each: int = 2
) -> list[dict[str, Any]]:
    """Answers before and after, side by side: in every suite those that changed come first."""
    pairs = []
    for suite in table.suites:
        rows: dict[str, dict[str, Any]] = {"none": {}, "care": {}}
        for row in table.rows:
            if row["suite"] == suite and row["defense"] in rows:
                rows[row["defense"]][row["example"]] = row
        both = [i for i in rows["none"] if i in rows["care"] and i in examples]
        sound = [i for i in both if not (rows["none"][i]["error"] or rows["care"][i]["error"])]
        sound.sort(key=lambda i: rows["none"][i]["outcome"] == rows["care"][i]["outcome"])
        for i in sound[:each]:
            first, second, example = rows["none"][i], rows["care"][i], examples[i]
            images = example.load_images()
            pairs.append(
                {
                    "suite": suite,
                    "id": i,
                    "goal": example.goal,
                    "prompt": example.prompt,
                    "image": data_uri(images[0]) if images else None,
                    "before": first["response"],
                    "after": second["response"],
                    "outcome_before": first["outcome"],
                    "outcome_after": second["outcome"],
                }
            )
    return pairs


def data_uri(image: Image.Image) -> str:
    """A small PNG of the picture as a data URI."""
    small = image.copy()
    small.thumbnail((168, 168))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@torch.no_grad()
def attribution(
    vlm: VLM, examples: Sequence[Example], repair: Repair, each: int = 2
) -> dict[str, Any]:
    """Token scores at the first text site for a few attacks of every suite with pictures."""
    site = Site(repair.sites[0].layer, "layer_out")
    wanted: dict[str, list[Example]] = {}
    for example in examples:
        if example.images and example.kind == "malicious":
            wanted.setdefault(example.suite, []).append(example)
    found = []
    for example in [e for group in wanted.values() for e in group[:each]]:
        batch = vlm.batch([example])
        with read(vlm, [site]) as recorder:
            vlm.forward(batch, logits_to_keep=1)
            h, roles = recorder[site]
        found.append(_scores(vlm, example, batch.inputs["input_ids"][0], h[0].float(), roles[0]))
    return {"examples": found}


def _scores(vlm: VLM, example: Example, ids: Any, h: Any, roles: Any) -> dict[str, Any]:
    """Scores of one example; sinks among the text tokens score 0."""
    visual, text = h[roles == Role.IMAGE].cpu().numpy(), h[roles == Role.TEXT].cpu().numpy()
    sinks = sink_mask(text)
    scores = text_scores(text[~sinks])
    spread = [0.0] * len(text)
    for place, score in zip((~sinks).nonzero()[0], scores, strict=True):
        spread[place] = float(score)
    side = round(len(visual) ** 0.5)
    square = side * side == len(visual)
    tokens = [vlm.tokenizer.decode([int(i)]) for i in ids[roles == Role.TEXT]]
    return {
        "id": example.id,
        "image": data_uri(example.load_images()[0]) if square else None,
        "grid": [side, side] if square else None,
        "visual_scores": visual_scores(visual, text[~sinks]).tolist() if square else [],
        "tokens": tokens,
        "text_scores": spread,
    }
