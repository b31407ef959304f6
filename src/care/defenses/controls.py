"""Controls of a repair, or of any defense: what differs in one thing, whose doing then shows.

    random subspace       other directions of the same rank in every channel
    difference of means   the bare difference of means in every channel, and no gate: two things,
                          see below
    random discriminant   another direction w in every monitor, at the same site and pooling
    sees the picture      the monitor of requests reads each beside its picture, at the same
                          threshold: what the certificate rests on is that it doesn't
    shuffled labels       any defense fitted on the same answers, their classes dealt out at random

The difference of means is a direction as it is published and applied, to whatever is asked (Arditi
et al. 2024): it tells what a repair has beyond that, subspaces and gates together, and not what
subspaces have beyond one direction (behind the same gate it does as well, docs/method.md).

A random w has the monitors' own rule for its threshold (`stated_threshold`): of each kind of
harmless examples to fit on, at most the share may raise the alarm that does so of the monitor's
worst kind. It is scaled so that harmless kinds have a mean of 0 and the threshold is the monitor's.
A monitor without a discriminant has no such control and is left out. Controls that are
made of no defense (to refuse always or at random, a random subspace at a layer) are in
`care.defenses.rivals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from care.data.example import Example
from care.defenses.material import CLASSES, KINDS, Material
from care.defenses.monitors.choosing import labelled_answer
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.features import Labelled
from care.defenses.monitors.fitting import MonitorConfig, stated_threshold
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.results import shares
from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.errors import FitError, UsageError

if TYPE_CHECKING:
    from care.models.vlm import VLM


HARMLESS = 40
"""Harmless examples of each suite that thresholds of random discriminants are set by."""


def harmless_answers(answered: Sequence[tuple[Example, str]]) -> list[Labelled]:
    """Answers to harmless requests, for thresholds: at most `HARMLESS` a suite, evenly spread."""
    by_suite: dict[str, list[Labelled]] = {}
    for example, answer in answered:
        by_suite.setdefault(example.suite, []).append(labelled_answer(example, answer, False))
    return [each for own in by_suite.values() for each in own[:: -(-len(own) // HARMLESS)]]


def random_control(repair: Repair, seed: int = 0) -> Repair:
    """The repair with random orthonormal directions of the same rank, in all else the same."""
    channels = []
    for place, channel in enumerate(repair.channels):
        old = channel.subspace
        drawn = random_subspace(old.width, old.rank, old.mean, seed=seed + place)
        channels.append(replace(channel, subspace=drawn))
    return replace(repair, channels=tuple(channels), name="random subspace", memory=None)


def means_control(repair: Repair, fitter: Fitter) -> Repair:
    """The repair with the bare difference of means, without a gate, in place of every channel."""
    means = fitter.means(repair.channels)
    return replace(repair, channels=means, name="difference of means", memory=None)


def random_discriminants(
    vlm: VLM, repair: Repair, harmless: Sequence[Labelled], seed: int = 0, batch_size: int = 32
) -> Repair:
    """The repair with random directions in its monitors, which alarm as often on `harmless`.

    `harmless` are requests and the undefended model's answers to them, of examples to fit on.
    UsageError for a repair without discriminants, FitError where nothing can be read.
    """
    watching = [monitor for monitor in repair.monitors if monitor.detector is not None]
    if not watching:
        raise UsageError(
            f"The repair {repair.name!r} has no monitor with a discriminant, and so no random one "
            "to compare it with; leave the controls out."
        )
    drawn = [
        _random(vlm, monitor, harmless, np.random.default_rng([seed, place]), batch_size)
        for place, monitor in enumerate(watching)
    ]
    return replace(repair, monitors=tuple(drawn), name="random discriminant", memory=None)


def seeing_control(repair: Repair) -> Repair:
    """The repair whose monitor of requests reads each beside its picture; UsageError without one
    that has a discriminant."""
    could = [m.reads == "request" and m.detector is not None for m in repair.monitors]
    if not any(could):
        raise UsageError(
            f"The repair {repair.name!r} has no discriminant of requests that could see pictures; "
            "leave the controls out."
        )
    monitors = (
        replace(monitor, with_picture=sees)
        for monitor, sees in zip(repair.monitors, could, strict=True)
    )
    return replace(repair, monitors=tuple(monitors), name="sees the picture", memory=None)


def shuffled_labels(material: Material, seed: int | Sequence[int] = 0) -> Material:
    """The same requests and answers in classes of the same sizes, dealt out at random.

    Each request is of the kind that the class it was dealt to holds. A defense that is fitted on
    it, `Kind.fit(…, material=shuffled_labels(material))`, has all that the fit brings, but nothing
    of what the classes say.
    """
    parts = [getattr(material, name) for name in CLASSES]
    order = np.random.default_rng(seed).permutation(sum(map(len, parts)))
    dealt = np.split(order, np.cumsum([len(part) for part in parts])[:-1])
    pool = [each for part in parts for each in part]
    rows = {site: np.concatenate(each) for site, each in material.decisions.items()}
    return Material(
        *(
            tuple((replace(pool[place][0], kind=kind), pool[place][1]) for place in part)
            for kind, part in zip(KINDS, dealt, strict=True)
        ),
        decisions={site: tuple(each[part] for part in dealt) for site, each in rows.items()},
        max_new_tokens=material.max_new_tokens,
    )


def _random(
    vlm: VLM,
    monitor: Monitor,
    harmless: Sequence[Labelled],
    rng: np.random.Generator,
    batch_size: int,
) -> Monitor:
    assert monitor.detector is not None
    width = len(monitor.detector.direction)
    direction = rng.standard_normal(width)
    raw = replace(
        monitor, detector=Detector(direction.astype(np.float32), np.zeros(width, np.float32))
    )
    found = raw.scores(vlm, [each.exchange for each in harmless], batch_size)
    scored = tuple(
        (each.kind, max(score for _, score in scores))
        for each, scores in zip(harmless, found, strict=True)
        if scores
    )
    if not scored:
        raise FitError(f"There is no harmless {monitor.reads} to set a random threshold by.")
    share = max(monitor.alarmed.values(), default=MonitorConfig().share())
    limit = stated_threshold(scored, min(share, 0.999))
    by_kind: dict[str, list[float]] = {}
    for kind, score in scored:
        by_kind.setdefault(kind, []).append(score)
    centre = float(np.mean([np.mean(scores) for scores in by_kind.values()]))
    scale = max(monitor.threshold, 1e-3) / max(limit - centre, 1e-6)
    direction = direction * scale
    # s = wᵀ(h − μ) is the monitor's threshold where the raw score is `limit`.
    mean = direction * (scale * limit - monitor.threshold) / (direction @ direction)
    detector = Detector(direction.astype(np.float32), mean.astype(np.float32))
    alarmed = shares((kind, score > limit) for kind, score in scored)
    return replace(monitor, detector=detector, alarmed=alarmed)
