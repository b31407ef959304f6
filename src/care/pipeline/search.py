"""A search of settings on validation: each is fitted and kept, asked the same, and one is taken.

The rule, the number of settings and the sample are those of `tuning`. A killed search goes on with
the setting, or the batch of answers, where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from care.evaluation.comparison_table import Budget, TriedSettings
from care.evaluation.config import UNDEFENDED
from care.evaluation.results import Results
from care.pipeline.fits import Fit, Fits, Made
from care.pipeline.selection import mean_rates
from care.pipeline.stages import Stages
from care.pipeline.tuning import Options, TuningSize, budget_of, sample_of, taken, told

STAGE = "tuning"
"""Name of the stage, and of the folder of its answers."""


@dataclass(frozen=True)
class Searched:
    """What came of a search."""

    fit: Fit
    """The fit with the settings that were taken; a failed one where all failed."""
    options: Options
    """Those settings."""
    tried: tuple[TriedSettings, ...]
    """All settings with their figures."""
    degenerate: tuple[float | None, ...]
    """Share of broken answers with each; none of what wasn't asked."""


def setting_name(of: str, options: Options) -> str:
    """Name of a defense with these settings, by which its fits and answers are kept."""
    return f"{of} ({', '.join(f'{k}={v}' for k, v in told(options).items())})" if options else of


class Search:
    """The searches of one job, which have the sample in common."""

    def __init__(self, work: Stages, fits: Fits, size: TuningSize) -> None:
        self.work, self.fits, self.size = work, fits, size
        self.sample = sample_of(work.counted("validation"), size)

    def budget(self) -> Budget:
        """What each search has."""
        return budget_of(self.size, self.sample)

    def asked(self, defenses: Sequence[object] = ()) -> Results:
        """Answers to the sample, bare and under defenses with their names."""
        with self.work.inner(STAGE) as inner:
            return self.work.ask(self.sample, [None, *defenses], STAGE, inner)

    def of(self, name: str, wanted: Sequence[Options], make: Callable[[Options], Made]) -> Searched:
        """The best of the settings that are `wanted` of a defense; of a single one, nothing is
        asked."""
        names = [setting_name(name, options) for options in wanted]
        found = [
            self.fits.made(key, lambda o=options: make(o))
            for key, options in zip(names, wanted, strict=True)
        ]
        if len(wanted) == 1:
            failed = found[0].failed
            tried = TriedSettings(told(wanted[0]), failed, None, None, None, failed is None)
            return Searched(found[0], wanted[0], (tried,), (None,))
        defenses = zip(names, (each.defense for each in found), strict=True)
        table = self.asked([named for named in defenses if named[1] is not None])
        figures: list[TriedSettings] = []
        broken: list[float | None] = []
        for key, options, each in zip(names, wanted, found, strict=True):
            rates = dict.fromkeys(("asr", "utility", "answered", "degenerate"))
            if each.failed is None:
                rates = mean_rates(table, key)
            broken.append(rates.pop("degenerate"))
            figures.append(TriedSettings(told(options), each.failed, **rates, chosen=False))
        tried = taken(mean_rates(table, UNDEFENDED), figures)
        best = next((place for place, each in enumerate(tried) if each.chosen), 0)
        return Searched(found[best], wanted[best], tried, tuple(broken))
