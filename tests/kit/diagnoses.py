"""A realistic synthetic diagnosis: shapes and magnitudes of a real one, made-up effects.

Curves and agreements are computed by the library from effects that are planted here, so they fit
together as real ones do.
"""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from care.diagnosis.faithfulness import FaithfulnessConfig, faithfulness
from care.diagnosis.reliability import Effects, ReliabilityConfig, agreement, families, halves
from care.report.conclusions import verdict
from care.statistics.sampling import SamplingSpec
from care.typed import to_tree

N_LAYERS = 30
N_EXAMPLES = 24
OUTCOMES = ("harmful", "refused", "degenerate", "safe")
_HEIGHTS = {"ffn": 1.6, "mhsa": 0.6, "layer": 2.1}
_TOKENS = ("Ġsorry", "Ġcannot", "I", "Ċ", "Ġhelp", "Ġunable")


def diagnosis_tree(rng: np.random.Generator) -> dict[str, Any]:
    """The whole `diagnosis` part, with its verdict."""
    layers = []
    for component, height in _HEIGHTS.items():
        for layer in range(N_LAYERS):
            effect = height * math.exp(-(((layer - 15) / 5) ** 2)) + float(rng.normal(0, 0.08))
            half = 0.15 + 0.1 * float(rng.random())
            row = {"layer": layer, "component": component}
            layers.append(row | figures(effect, half))
    rise = [1 / (1 + math.exp(-(layer - 8) / 3)) for layer in range(N_LAYERS)]
    tree = {
        "verdict": "2 of 60 sites carry the attacks, first 15.ffn_out: without it the refusal"
        " log-odds of attacks rise by 1.6 nats, those of benign requests by 0.2.",
        "metric": "change in refusal log-odds (nats)",
        "intervention": "mean ablation on the prompt's tokens",
        "n_layers": N_LAYERS,
        "layers": layers,
        "separability": [
            {
                "layer": layer,
                "silhouette": 0.32 * r + float(rng.normal(0, 0.01)),
                "class_separation": 2.4 * r,
                "mahalanobis": 14 * r + float(rng.normal(0, 0.3)),
            }
            for layer, r in enumerate(rise)
        ],
        "rank_correlation": {
            "silhouette": {"rho": 0.31, "low": -0.06, "high": 0.6},
            "class_separation": {"rho": 0.28, "low": -0.1, "high": 0.58},
            "mahalanobis": {"rho": 0.22, "low": -0.15, "high": 0.54},
        },
        "generated": [
            {
                "site": f"{layer}.ffn_out",
                "n": 80,
                "outcomes": dict(zip(OUTCOMES, counts, strict=True)),
                "asr_change": {"rate": counts[0] / 80 - 0.6, "low": -0.5, "high": 0.1},
            }
            for layer, counts in ((14, (22, 51, 3, 4)), (15, (18, 54, 4, 4)), (16, (9, 20, 49, 2)))
        ],
        "recommended": [
            {"site": "15.ffn_out", "modality": "visual", "reason": "largest effect, few broken"},
            {"site": "14.ffn_out", "modality": "text", "reason": "second largest effect"},
        ],
        "channels": channel_scan(),
        "sign": "Positive: ablating the site raises the refusal log-odds, so the site works against"
        " refusing. Sites with a positive effect are recommended.",
        "heatmap": heatmap(layers),
        "comparison": comparison(),
        "rescan": rescan(),
        "causal": [
            causal(layer, metric, pairs)
            for pairs in ("adversarial pictures", "twin requests")
            for metric in ("a", "b")
            for layer in (13, 14, 15, 16)
        ],
        "neurons": neurons(),
        "trust": trust(layers),
    }
    for row in tree["causal"]:
        row["metric"] = {"a": "refusal log-odds", "b": "log P(refusal) − log P(compliance)"}[
            row["metric"]
        ]
    return tree | {key: list(lines) for key, lines in asdict(verdict(tree)).items()}


def figures(effect: float, half: float) -> dict[str, float]:
    """An effect with its interval, and a tenth of it on benign prompts."""
    return {
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "benign_effect": 0.1 * effect,
        "selectivity": effect - 0.1 * effect,
        "selectivity_low": effect - 0.1 * effect - 1.2 * half,
    }


def estimate(rate: float, half: float = 0.1) -> dict[str, Any]:
    """A figure with its interval."""
    return {"rate": rate, "low": rate - half, "high": rate + half, "n": N_EXAMPLES}


def heatmap(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Single layers as in the layer scan, and windows of three that add up, a little less."""
    keys = ("effect", "low", "high")
    rows = []
    for item in layers:
        how = "skip" if item["component"] == "layer" else "mean"
        extra = {"window": 1, "intervention": how, "relative_norm": 0.4}
        rows.append({key: value for key, value in item.items() if key != "p"} | extra)
    for component in _HEIGHTS:
        own = {item["layer"]: item for item in layers if item["component"] == component}
        for layer in range(1, N_LAYERS - 1):
            around = [own[at] for at in (layer - 1, layer, layer + 1)]
            effect, low, high = (0.8 * sum(item[key] for item in around) for key in keys)
            how = "skip" if component == "layer" else "mean"
            row = {"layer": layer, "component": component, "window": 3, "intervention": how}
            row |= figures(effect, min(effect - low, high - effect))
            rows.append(row | {"relative_norm": 0.7})
    return rows


def comparison() -> list[dict[str, Any]]:
    """FFN ahead when removed alike, no longer at equal norm."""
    rows = []
    for matched, ffn, mhsa, half in (("kind", 0.52, 0.21, 0.12), ("norm", 0.3, 0.24, 0.13)):
        row = {"intervention": "mean", "matched_by": matched, "survives": False}
        row |= {"ffn_norm": 0.31, "mhsa_norm": 0.31 if matched == "norm" else 0.12}
        sides = {"ffn": estimate(ffn), "mhsa": estimate(mhsa)}
        rows.append(row | sides | {"difference": estimate(ffn - mhsa, half)})
    return rows


def rescan() -> dict[str, Any]:
    """Four sites removed by their mean and by what a benign prompt has there."""
    sites = [
        {"site": f"{layer}.ffn_out", "top": layer > 13}
        | {"effect": estimate(0.2 * layer - 2), "again": estimate(0.15 * layer - 1.5)}
        for layer in (15, 14, 13, 12)
    ]
    return {"intervention": "resample", "against": "mean", "sites": sites}


def causal(layer: int, metric: str, pairs: str) -> dict[str, Any]:
    """Effects through one FFN; a picture lowers the refusal log-odds, harm raises them."""
    way = 1 if pairs == "twin requests" else -1
    total, indirect = 3.1 * way, 1.5 * way * math.exp(-(((layer - 15) / 2) ** 2))
    direct = total - 0.8 * indirect
    return {
        "site": f"{layer}.ffn_out",
        "pairs": pairs,
        "window": 1,
        "metric": metric,
        "total": estimate(total, 0.4),
        "direct": estimate(direct, 0.4),
        "indirect": estimate(indirect, 0.2),
        "reversed_indirect": estimate(direct - total, 0.2),
        "identity_error": 2.4e-6,
        "noising": estimate(indirect / total, 0.06),
        "denoising": estimate((total - direct) / total, 0.06),
        "aligned": 0.97,
    }


def neurons() -> dict[str, Any]:
    """Eight found neurons that matter and eight controls that don't."""
    rng = np.random.default_rng(5)

    def row(index: int, exact: float) -> dict[str, Any]:
        sure = abs(exact) > 0.05
        return {
            "layer": 12 + index % 6,
            "neuron": 100 + 37 * index,
            "estimate": exact * (0.8 + 0.3 * float(rng.random())),
            "exact": exact,
            "low": exact - 0.04,
            "high": exact + 0.04,
            "p": 0.0005 if sure else 0.4,
            "q": 0.001 if sure else 0.6,
            "benign_exact": 0.1 * exact,
            "top_tokens": list(_TOKENS[: 3 + index % 3]) if sure else [],
            "suppressed_tokens": ["ĠSure", "Ġ1"] if sure else [],
            "examples": [
                {"example": f"pgd-32/{k:03d}", "token": "Ġhow", "activation": 4.2 - k}
                for k in range(3 * sure)
            ],
            "patches": [
                {"example": "pgd-32/001", "image": 0, "row": 3, "column": 5, "activation": 2.5}
            ][: int(sure)],
        }

    found = [row(k, (0.42 - 0.045 * k) * (-1 if k % 3 == 2 else 1)) for k in range(8)]
    return {
        "pairs": "adversarial pictures",
        "method": "atp",
        "n_neurons": 46080,
        "steps": 1,
        "forward_equivalents": 4,
        "scopes": ["decision"],
        "spearman": {"rho": 0.83, "low": 0.61, "high": 0.9, "n": 16},
        "precision": {"8": 0.875},
        "control_ratio": 21.0,
        "found": found,
        "controls": [row(20 + k, float(rng.normal(0, 0.015))) for k in range(8)],
        "repair": {
            "rule": "the shortest beginning of the ranking that refuses most attacks",
            "neurons": [[item["layer"], item["neuron"]] for item in found[:3]],
            "before": {"not_refused": 0.7, "benign_refused": 0.02},
            "after": {"not_refused": 0.45, "benign_refused": 0.03},
            "subspace": {"not_refused": 0.12, "benign_refused": 0.04},
            "judged": judged(),
        },
    }


def judged() -> dict[str, Any]:
    """Whole answers under both repairs."""
    shares = {"none": 0.6, "neurons": 0.4, "subspace": 0.1}
    return {
        "neurons": 3,
        "within_margin": True,
        "edits": [
            {"edit": edit, "asr": estimate(share)}
            | {"utility": 0.8, "answered": 0.9, "degenerate": 0.01}
            for edit, share in shares.items()
        ],
        "difference": estimate(0.3),
    }


def trust(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """From additive effects of the FFN and attention outputs on examples with noise."""
    rng = np.random.default_rng(7)
    parts = [item for item in layers if item["component"] in ("ffn", "mhsa")]
    means = np.array([item["effect"] for item in parts])
    values = means[:, None] + 0.5 * rng.normal(size=(len(parts), N_EXAMPLES))
    goals = tuple(f"goal {k % 12}" for k in range(N_EXAMPLES))
    kinds = tuple(("pgd-32", "text-jailbreak", "beside-image")[k % 3] for k in range(N_EXAMPLES))
    effects = Effects(values, goals, kinds)

    def metric(removed: Any) -> np.ndarray:
        return values[list(removed)].sum(axis=0) - 20.0

    ranking = [int(place) for place in np.argsort(-means)]
    curve = faithfulness(ranking, metric, goals, config=FaithfulnessConfig(draws=20))
    words = {"units": "FFN and attention outputs", "metric": "refusal log-odds of attacks"}
    config = ReliabilityConfig(splits=50, sampling=SamplingSpec(resamples=200))
    again = Effects(values + 0.3 * rng.normal(size=values.shape), goals)
    rows = [halves(effects, config), *families(effects, config=config)]
    rows.append(agreement(effects, again, "mean and resample", "intervention", config))
    return {
        "faithfulness": [to_tree(curve) | words],
        "stability": [to_tree(row) for row in rows],
    }


def channel_scan() -> dict[str, Any]:
    """One channel of each modality at every layer."""
    rng = np.random.default_rng(11)
    sites = []
    for modality, middle, best in (("image", 17, (20,)), ("text", 22, (24, 27))):
        for layer in range(N_LAYERS):
            rise = 0.82 / (1 + math.exp(-(layer - middle) / 2.2))
            effect = round(rise + float(rng.normal(0, 0.015)), 3) if layer > 3 else 0.0
            benign = round(0.03 * rise + 0.002 * (layer % 4), 3)
            half = 0.03 + 0.05 * rise
            sites.append(
                {
                    "site": f"{layer}.layer_out",
                    "layer": layer,
                    "modality": modality,
                    "effect": effect,
                    "low": effect - half,
                    "high": effect + half,
                    "benign_effect": benign,
                    "selectivity": effect - benign,
                    "selectivity_low": effect - benign - 1.2 * half,
                    "n_attacks": 160 if modality == "image" else 40,
                    "n_benign": 150,
                    "recommended": layer in best,
                }
            )
    return {
        "metric": "share of requests, not refused without it, whose answer begins with a refusal",
        "rule": "Sites whose selectivity lies above 0 and within its interval of the best one; at"
        " most 2 of a modality.",
        "sites": sites,
    }
