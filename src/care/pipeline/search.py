"""A search of settings on validation: each is fitted and kept, asked the same, and one is taken.

The rule, the number of settings and the sample are those of `tuning`. A killed search goes on with
the setting, or the batch of answers, where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    rates: Mapping[str, Mapping[str, float]]
    """Mean rates of the bare model and by name of the setting, of what was asked."""


def setting_name(of: str, options: Options) -> str:
    """Name of a defense with these settings, by which its fits and answers are kept."""
    return f"{of} ({', '.join(f'{k}={v}' for k, v in told(options).items())})" if options else of


class SettingsSearch:
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
            return Searched(found[0], wanted[0], (tried,), {})
        defenses = [
            (name, each.defense)
            for name, each in zip(names, found, strict=True)
            if each.defense is not None
        ]
        table = self.asked(defenses)
        rates = {name: mean_rates(table, name) for name in (UNDEFENDED, *dict(defenses))}
        figures = [
            _figures(options, each.failed, rates.get(name, {}))
            for name, options, each in zip(names, wanted, found, strict=True)
        ]
        marked = taken(rates[UNDEFENDED], figures)
        best = next((place for place, each in enumerate(marked) if each.chosen), 0)
        return Searched(found[best], wanted[best], marked, rates)


def _figures(options: Options, failed: str | None, rates: Mapping[str, float]) -> TriedSettings:
    asr, utility, answered = (rates.get(name) for name in ("asr", "utility", "answered"))
    if asr is not None and math.isinf(asr):  # none of the attacks could be judged
        asr = None
    return TriedSettings(told(options), failed, asr, utility, answered, chosen=False)
