"""How the figures of the `diagnosis` part of a report tree fit together.

Everything stays inside the model and is listed once, every figure lies in its interval, a
selectivity is the difference of its two effects, and curves begin at 0 and end at 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from care.report.values import TOLERANCE, check_interval, problem

Tree = Mapping[str, Any]


def check_diagnosis(diagnosis: Tree) -> None:
    """Raise `DataError` where two figures of the `diagnosis` part contradict each other."""
    _check_scan(diagnosis)
    _check_heatmap(diagnosis)
    _check_comparison(diagnosis.get("comparison") or [])
    _check_rescan(diagnosis.get("rescan") or {"sites": []})
    for i, row in enumerate(diagnosis.get("causal") or []):
        _check_causal(row, f"diagnosis.causal[{i}]")
    if neurons := diagnosis.get("neurons"):
        _check_neurons(neurons, diagnosis["n_layers"])
    trust = diagnosis.get("trust") or {"faithfulness": [], "stability": []}
    for i, curve in enumerate(trust["faithfulness"]):
        _check_curve(curve, f"diagnosis.trust.faithfulness[{i}]")
    for i, row in enumerate(trust["stability"]):
        _check_stability(row, f"diagnosis.trust.stability[{i}]")


def _check_scan(diagnosis: Tree) -> None:
    """One channel a layer and modality."""
    seen: set[tuple[int, str]] = set()
    for i, item in enumerate((diagnosis["channels"] or {"sites": []})["sites"]):
        path, layer = f"diagnosis.channels.sites[{i}]", item["layer"]
        _check_layer(layer, diagnosis["n_layers"], path)
        if (layer, item["modality"]) in seen:
            raise problem(
                f"{path}.layer",
                f"repeats {layer} for {item['modality']!r}; the scan has one channel of each "
                "modality a layer",
            )
        seen.add((layer, item["modality"]))
        if not item["site"].startswith(f"{layer}."):
            raise problem(f"{path}.site", f"is {item['site']!r}, which isn't in layer {layer}")
        _check_selectivity(item, path)


def _check_heatmap(diagnosis: Tree) -> None:
    """One cell for each component, layer, window and intervention."""
    seen: set[tuple[Any, ...]] = set()
    for i, item in enumerate(diagnosis.get("heatmap") or []):
        path = f"diagnosis.heatmap[{i}]"
        _check_layer(item["layer"], diagnosis["n_layers"], path)
        if item["window"] > diagnosis["n_layers"]:
            raise problem(
                f"{path}.window",
                f"is {item['window']}, but the model has {diagnosis['n_layers']} layers",
            )
        cell = tuple(item[key] for key in ("layer", "component", "window", "intervention"))
        if cell in seen:
            raise problem(
                path, f"repeats layer {cell[0]}, {cell[1]}, window {cell[2]}, {cell[3]!r}"
            )
        seen.add(cell)
        _check_selectivity(item, path)


def _check_comparison(rows: Sequence[Tree]) -> None:
    seen: set[tuple[str, str]] = set()
    for i, row in enumerate(rows):
        path = f"diagnosis.comparison[{i}]"
        key = row["intervention"], row["matched_by"]
        if key in seen:
            raise problem(path, f"repeats {key[0]!r} matched by {key[1]}")
        seen.add(key)
        for name in ("ffn", "mhsa", "difference"):
            check_interval(row[name], f"{path}.{name}")
        gap = row["ffn"]["rate"] - row["mhsa"]["rate"]
        if abs(gap - row["difference"]["rate"]) > TOLERANCE:
            raise problem(
                f"{path}.difference.rate",
                f"is {row['difference']['rate']:g}, but ffn less mhsa is {gap:g}",
            )
        if row["survives"] and row["difference"]["low"] <= 0.0:
            raise problem(
                f"{path}.survives",
                f"is True, but the difference may be as low as {row['difference']['low']:g}",
            )


def _check_rescan(rescan: Tree) -> None:
    seen: set[str] = set()
    for i, item in enumerate(rescan["sites"]):
        path = f"diagnosis.rescan.sites[{i}]"
        if item["site"] in seen:
            raise problem(f"{path}.site", f"repeats {item['site']!r}")
        seen.add(item["site"])
        for name in ("effect", "again"):
            check_interval(item[name], f"{path}.{name}")


def _check_judged(judged: Tree, path: str) -> None:
    """Each edit once, and the difference that of their attack success."""
    rates = {item["edit"]: item["asr"]["rate"] for item in judged["edits"]}
    names = [item["edit"] for item in judged["edits"]]
    if sorted(names) != ["neurons", "none", "subspace"]:
        raise problem(
            f"{path}.edits", f"has {', '.join(names)}; it must have none, neurons and subspace once"
        )
    for i, item in enumerate(judged["edits"]):
        check_interval(item["asr"], f"{path}.edits[{i}].asr")
    check_interval(judged["difference"], f"{path}.difference")
    gap = rates["neurons"] - rates["subspace"]
    if abs(gap - judged["difference"]["rate"]) > TOLERANCE:
        raise problem(
            f"{path}.difference.rate",
            f"is {judged['difference']['rate']:g}, but neurons less subspace is {gap:g}",
        )


def _check_causal(row: Tree, path: str) -> None:
    """|TE − (NDE − reversed NIE)| of the means is at most the stated error."""
    for name in ("total", "direct", "indirect", "reversed_indirect"):
        check_interval(row[name], f"{path}.{name}")
    for name in ("noising", "denoising"):
        if row[name] is not None:
            _check_band(row[name], f"{path}.{name}")
    total, direct, back = (row[name]["rate"] for name in ("total", "direct", "reversed_indirect"))
    error = abs(total - (direct - back))
    stated = row["identity_error"] or 0.0
    if error > stated + TOLERANCE:
        raise problem(
            f"{path}.identity_error",
            f"is {stated:g}, but total less (direct less reversed_indirect) is {error:g}",
        )


def _check_neurons(report: Tree, n_layers: int) -> None:
    _check_band(report["spearman"], "diagnosis.neurons.spearman")
    if judged := (report.get("repair") or {}).get("judged"):
        _check_judged(judged, "diagnosis.neurons.repair.judged")
    seen: set[tuple[int, int]] = set()
    for path, item in _neurons(report):
        _check_layer(item["layer"], n_layers, path)
        if (item["layer"], item["neuron"]) in seen:
            raise problem(path, f"repeats neuron {item['neuron']} of layer {item['layer']}")
        seen.add((item["layer"], item["neuron"]))
        check_interval(item, path, "exact")
        if item["q"] < item["p"] - TOLERANCE:
            raise problem(f"{path}.q", f"is {item['q']:g}, below p, {item['p']:g}")


def _neurons(report: Tree) -> Iterator[tuple[str, Tree]]:
    for key in ("found", "controls"):
        for i, item in enumerate(report[key]):
            yield f"diagnosis.neurons.{key}[{i}]", item


def _check_curve(curve: Tree, path: str) -> None:
    """From no unit, where F is 0, to all of them, where it is 1; backwards for completeness."""
    for name in ("scale", "cpr", "cmd", "sufficiency_advantage", "necessity_advantage"):
        check_interval(curve[name], f"{path}.{name}")
    points = curve["points"]
    sizes = [point["size"] for point in points]
    if (
        len(sizes) < 2
        or sizes != sorted(set(sizes))
        or (sizes[0], sizes[-1])
        != (
            0,
            curve["n_units"],
        )
    ):
        raise problem(
            f"{path}.points", f"has sizes {sizes}; they must rise from 0 to {curve['n_units']}"
        )
    for i, point in enumerate(points):
        for name in ("metric", "faithfulness", "completeness"):
            check_interval(point[name], f"{path}.points[{i}].{name}")
        for name in ("random_faithfulness", "random_completeness"):
            _check_band(point[name], f"{path}.points[{i}].{name}")
    for name in ("random_cpr", "random_cmd"):
        _check_band(curve[name], f"{path}.{name}")
    for at, name, expected in (
        (0, "faithfulness", 0.0),
        (-1, "faithfulness", 1.0),
        (0, "completeness", 1.0),
        (-1, "completeness", 0.0),
    ):
        value = points[at][name]["rate"]
        if abs(value - expected) > TOLERANCE:
            size = points[at]["size"]
            raise problem(
                f"{path}.points", f"has {name} {value:g} at size {size}, where it is {expected:g}"
            )


def _check_stability(row: Tree, path: str) -> None:
    check_interval(row["spearman"], f"{path}.spearman", "rho")
    check_interval(row["overlap"], f"{path}.overlap")
    if row["reliability"] is not None:
        check_interval(row["reliability"], f"{path}.reliability", "rho")


# --- shared parts -------------------------------------------------------------------------------


def _check_layer(layer: int, n_layers: int, path: str) -> None:
    if layer >= n_layers:
        raise problem(f"{path}.layer", f"is {layer}, but the model has {n_layers} layers")


def _check_selectivity(item: Tree, path: str) -> None:
    """The effect lies in its interval; the selectivity is the difference, above its lower limit."""
    check_interval(item, path, "effect")
    gap = item["effect"] - item["benign_effect"]
    if abs(gap - item["selectivity"]) > TOLERANCE:
        raise problem(
            f"{path}.selectivity",
            f"is {item['selectivity']:g}, but effect less benign_effect is {gap:g}",
        )
    if item["selectivity_low"] > item["selectivity"] + TOLERANCE:
        raise problem(
            f"{path}.selectivity_low",
            f"is {item['selectivity_low']:g}, above the selectivity {item['selectivity']:g}",
        )


def _check_band(band: Tree, path: str) -> None:
    """Bounds in order; a mean of few skewed draws or a resampled correlation may lie outside."""
    if band["low"] > band["high"] + TOLERANCE:
        raise problem(path, f"has low {band['low']:g} above high {band['high']:g}")
