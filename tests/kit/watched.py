"""Repairs with monitors of every kind, whose alarms are set by their thresholds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.models.sites import Site
from kit import repairs, tiny

NEVER, ALWAYS = 1e9, -1e9


def detector(seed):
    """Random directions."""
    rng = np.random.default_rng(seed)
    return Detector(*(rng.standard_normal(tiny.WIDTH).astype(np.float32) for _ in range(2)))


def repaired(answer=NEVER, exchange=NEVER, request=NEVER):
    """A repair with channels and three monitors, by their thresholds."""
    monitors = (
        Monitor("request", request, Site(1, "ffn_out"), detector(0)),
        Monitor("answer", answer, Site(1, "layer_out"), detector(1)),
        Monitor("exchange", exchange, Site(2, "ffn_out"), detector(2), "window"),
    )
    return replace(repairs.repair(), monitors=monitors)
