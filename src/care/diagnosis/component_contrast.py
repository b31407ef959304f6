"""FFN against attention: is one of them really what carries an attack?

The two can only be compared under the same kind of ablation, and even then one of them may be found
to matter more because more was taken away. So the comparison is made twice: as it comes (`kind`),
and with both scaled to remove equally much (`norm`). In layer l, component c removes on average

    r_c = mean ‖Δh‖ / ‖x_l‖     over changed positions, x_l the residual stream that enters layer l

(one denominator for both); the one with the greater r_c is interpolated, h + s (h_ablated − h) with
s = min(r) / r_c, so that both remove min(r). What is compared is, for each example, the mean over
layers of |change in m|, paired by example and resampled by goal. "FFN ≫ MHSA" is said to survive if
the FFN's is more than twice that of the attention at the lower confidence limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from care.diagnosis.scan import Removal, Scan
from care.diagnosis.site_results import ComponentComparison
from care.errors import UsageError
from care.statistics.intervals import Interval

MUCH = 2.0
"""Factor from which one component counts as much more important than the other."""


def matched_removals(
    ffn: Sequence[Removal], mhsa: Sequence[Removal], norms: np.ndarray
) -> list[Removal]:
    """Ablations of each layer's FFN and attention, in the order given, that remove equally much.

    `norms` (2, L) are the `residual_norm` of the whole ablations. The one that removes less stays
    whole. A component that removes nothing makes the other's scale 0.
    """
    least = norms.min(axis=0)
    scales = np.divide(least, norms, out=np.ones_like(norms), where=norms > 0)
    return [
        replace(removal, scale=float(scale))
        for removals, row in zip((ffn, mhsa), scales, strict=True)
        for removal, scale in zip(removals, row, strict=True)
    ]


def compare(
    intervention: str,
    matched_by: Literal["kind", "norm"],
    ffn: np.ndarray,
    mhsa: np.ndarray,
    norms: np.ndarray,
    interval: Callable[[np.ndarray], Interval],
) -> ComponentComparison:
    """Compare effects (L, N) of ablating each layer's FFN and attention on the same examples.

    `norms` (2, L) are what the two remove; `interval` is given one number per example.
    """
    if ffn.shape != mhsa.shape:
        raise UsageError(
            f"FFN and attention must be ablated in the same layers and examples, got effects of "
            f"shape {ffn.shape} and {mhsa.shape}."
        )
    first, second = (np.abs(effects).mean(axis=0) for effects in (ffn, mhsa))
    return ComponentComparison(
        intervention=intervention,
        matched_by=matched_by,
        ffn=interval(first),
        mhsa=interval(second),
        difference=interval(first - second),
        survives=interval(first - MUCH * second).low > 0,
        ffn_norm=float(norms[0].mean()),
        mhsa_norm=float(norms[1].mean()),
    )


def compare_both(
    found: Mapping[Removal, tuple[np.ndarray, float]],
    rescan: Callable[[list[Removal]], Scan],
    interval: Callable[[np.ndarray], Interval],
) -> tuple[ComponentComparison, ...]:
    """The comparison by kind and by norm, from whole ablations of single FFN and attention sites.

    `found` holds for each removal its effects (N,) and residual norm; layers in which only one of
    the two was ablated are left out. `rescan` runs scaled removals on the same N examples: one in
    each layer. Empty if there are no two to compare.
    """
    parts: dict[str, dict[int, Removal]] = {"ffn_out": {}, "mhsa_out": {}}
    for removal in found:
        if len(removal.sites) == 1 and removal.site.kind in parts:
            parts[removal.site.kind][removal.site.layer] = removal
    layers = sorted(parts["ffn_out"].keys() & parts["mhsa_out"].keys())
    if not layers:
        return ()
    ffn, mhsa = ([parts[kind][layer] for layer in layers] for kind in ("ffn_out", "mhsa_out"))
    how = ffn[0].how
    norms = np.array([[found[removal][1] for removal in part] for part in (ffn, mhsa)])
    whole = [np.stack([found[removal][0] for removal in part]) for part in (ffn, mhsa)]
    matched = matched_removals(ffn, mhsa, norms)
    weaker = [removal for removal in matched if removal.scale != 1]
    scanned = rescan(weaker)
    known = dict(zip(weaker, zip(scanned.effects, scanned.residual_norm, strict=True), strict=True))
    again = [known.get(removal, found.get(removal)) for removal in matched]
    scaled = np.split(np.stack([item[0] for item in again if item is not None]), 2)
    removed = np.array([item[1] for item in again if item is not None]).reshape(2, -1)
    return (
        compare(how, "kind", whole[0], whole[1], norms, interval),
        compare(how, "norm", scaled[0], scaled[1], removed, interval),
    )
