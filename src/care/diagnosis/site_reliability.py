"""Other looks at the effects of sites: would they name the same ones?

    halves, families    the same effects, on halves of the goals and on single attack families
    another draw        every site removed again, on attacks that the first look didn't have
    a second way        the greatest sites, and as many others at random, removed in another way

The first two cost no run of the model. The third, as a full scan would, asks every site, but on few
attacks; the last asks a few sites on the same attacks. The greatest sites alone would say little:
picked as the greatest of many they lie close together, and where effects are noise they would come
out in any order. How agreement is measured is in `care.diagnosis.reliability`. Not here: the first
look itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from care.data.example import Example
from care.diagnosis.ablation import Ablation
from care.diagnosis.activation_means import BenignDonors, collect, goals_of, spread
from care.diagnosis.reliability import (
    MIN_SITES,
    Agreement,
    Effects,
    ReliabilityConfig,
    agreement,
    families,
    halves,
)
from care.diagnosis.scan import Removal, scan
from care.diagnosis.site_results import Changes, Rescan, RescannedSite
from care.diagnosis.site_scan_config import SiteScanConfig
from care.diagnosis.site_scan_runs import Data
from care.models.sites import Site
from care.models.vlm import VLM
from care.runs.progress import Bar, silent
from care.statistics.intervals import Interval

SECOND: tuple[Ablation, ...] = ("mean", "resample", "constant", "zero")
"""Ways of removing a site that a second look can take."""


class SiteReliability:
    """Looks at FFN and attention outputs of single layers, besides those of one scan."""

    def __init__(
        self,
        vlm: VLM,
        changes: Changes,
        settings: SiteScanConfig,
        config: ReliabilityConfig | None = None,
        progress: Bar | None = None,
    ) -> None:
        """`changes` are what the scan found under `settings`."""
        self.vlm, self.settings, self.config = vlm, settings, config or ReliabilityConfig()
        self.progress = progress or silent
        rows = [
            row
            for row, item in enumerate(changes.effects)
            if item.window == 1 and item.component != "layer"
        ]
        split = changes.n_attacks
        self.sites = [changes.effects[row].site for row in rows]
        self.values = changes.values[rows, :split]
        self.goals, self.suites = changes.goals[:split], changes.suites[:split]

    @property
    def own(self) -> Effects:
        """Effects of the first look on its attacks; at least three sites are needed."""
        return Effects(self.values, self.goals, self.suites)

    def parts(self) -> list[Agreement]:
        """Halves of the goals and attack families, as far as there are enough of them."""
        found: list[Agreement] = []
        if len(self.sites) < 3:
            return found
        if len(set(self.goals)) >= 4:
            found.append(halves(self.own, self.config))
        several = _families_of_two(self.own)
        if several is not None:
            found += families(several, config=self.config)
        return found

    def redrawn(
        self, attacks: Sequence[Example], benign: Sequence[Example], most: int
    ) -> Agreement | None:
        """The same sites removed on at most `most` attacks with other goals; None without two."""
        used = set(self.goals)
        others = spread([e for e in attacks if goals_of([e])[0] not in used], most)
        if len(set(goals_of(others))) < 2 or len(self.sites) < 3:
            return None
        settings, batch = self.settings, self.settings.batch_size
        harmless = spread(benign, settings.max_benign or len(benign))
        means = self._means(others, harmless, self.sites)
        with self.progress("another draw", len(self.sites) * len(others)) as bar:
            again = scan(
                self.vlm,
                others,
                [Removal((site,), settings.intervention) for site in self.sites],
                means=means,
                batch_size=batch,
                advance=bar.advance,
            )
        second = Effects(again.effects, tuple(goals_of(others)))
        return agreement(self.own, second, "another draw of attacks", "seed", self.config)

    def rescan(
        self,
        attacks: Sequence[Example],
        benign: Sequence[Example],
        how: Ablation = "resample",
        many: int = 8,
    ) -> tuple[Rescan, Agreement] | None:
        """The `many` greatest sites, and as many others, removed by `how` from the same attacks.

        With the agreement of both looks over these sites. `attacks` and `benign` are those that the
        first look was given. None for too few sites, or sites that all do the same.
        """
        rows, n_top = self._drawn(many)
        if len(rows) < MIN_SITES:
            return None
        data = Data.of(attacks, benign, self.settings)
        values = self._removed(data, [self.sites[row] for row in rows], how)
        first, second = (Effects(part, self.goals) for part in (self.values[rows], values))
        if any(np.ptp(look.values.mean(axis=1)) == 0.0 for look in (first, second)):
            return None
        words = f"{self.settings.intervention} and {how}, {n_top} greatest sites and "
        words += f"{len(rows) - n_top} others"
        rescan = Rescan(
            intervention=how,
            against=self.settings.intervention,
            sites=tuple(
                RescannedSite(
                    self.sites[row], at < n_top, self._mean(first, at), self._mean(second, at)
                )
                for at, row in enumerate(rows)
            ),
        )
        return rescan, agreement(first, second, words, "intervention", self.config)

    def _drawn(self, many: int) -> tuple[list[int], int]:
        """Rows of the greatest sites, then of others; and how many of the former there are."""
        order = np.argsort(-self.values.mean(axis=1), kind="stable")
        top, rest = order[:many], order[many:]
        rng = np.random.default_rng(self.config.sampling.seed)
        others = rng.choice(rest, min(many, len(rest)), replace=False)
        return [int(row) for row in (*top, *others)], len(top)

    def _removed(self, data: Data, sites: list[Site], how: Ablation) -> np.ndarray:
        """Change in the refusal log-odds of the attacks (S, N) with each site removed by `how`."""
        vlm, batch = self.vlm, self.settings.batch_size
        means = constants = donors = None
        if how in ("mean", "constant"):
            means = self._means(data.attacks, data.benign, sites)
        if how == "constant":
            constants = data.constants(vlm, means or {}, self.settings)
        if how == "resample":
            donors = BenignDonors(vlm, data.attacks, data.benign, sites)
        with self.progress(f"sites removed by {how}", len(sites) * len(data.attacks)) as bar:
            return scan(
                vlm,
                data.attacks,
                [Removal((site,), how) for site in sites],
                means=means,
                constants=constants,
                donors=donors,
                batch_size=batch,
                max_cache_bytes=self.settings.max_cache_bytes,
                advance=bar.advance,
            ).effects

    def _means(
        self, attacks: Sequence[Example], benign: Sequence[Example], sites: Sequence[Site]
    ) -> dict[Site, Tensor]:
        """Means per position class, over the prompts that the settings say."""
        asked = [*attacks, *benign] if self.settings.reference == "all" else benign
        return collect(self.vlm, asked, sites, batch_size=self.settings.batch_size).means

    def _mean(self, look: Effects, row: int) -> Interval:
        return self.config.sampling.mean(look.values[row], look.goals)


def _families_of_two(effects: Effects) -> Effects | None:
    """The effects on families of two goals or more; None if there is no second such family."""
    assert effects.families is not None
    goals: dict[str, set[str]] = {}
    for family, goal in zip(effects.families, effects.goals, strict=True):
        goals.setdefault(family, set()).add(goal)
    kept = [k for k, family in enumerate(effects.families) if len(goals[family]) > 1]
    names = tuple(effects.families[k] for k in kept)
    if len(set(names)) < 2:
        return None
    return Effects(effects.values[:, kept], tuple(effects.goals[k] for k in kept), names)
