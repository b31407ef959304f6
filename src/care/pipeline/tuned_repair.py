"""The repair of a job by a search over what its preset leaves open: `care repair --tune`.

In place of screening candidates and judging the best two of them, as many settings are tried as a
comparison tries of a rival, by its rule and on such a sample of the validation split (`search`,
`tuning`). Monitors are chosen on the whole of that split, as they are by default. A killed job goes
on with the setting or the batch where it stopped:

    fits.jsonl, fits/   the repair with every setting
    tuning/             answers to the sample under each
"""

from __future__ import annotations

from typing import Any

from care.defenses.repair.fitting import Fitter
from care.defenses.repair.repair import Repair
from care.diagnosis.results import Diagnosis
from care.errors import FitError
from care.evaluation.config import UNDEFENDED
from care.pipeline.care_settings import CareSettings
from care.pipeline.fits import Fits
from care.pipeline.search import Searched, SettingsSearch, setting_name
from care.pipeline.selection import Candidate, shown
from care.pipeline.stages import Stages
from care.pipeline.tuning import FULL, QUICK, Options, told
from care.typed import to_tree

NAME = "care"
"""Name of the repair in the answers to the sample."""


def tuned(work: Stages, fitter: Fitter, diagnosis: Diagnosis) -> tuple[Candidate, dict[str, Any]]:
    """The repair with the settings that were taken, and what its report says of the selection.

    FitError where it can be fitted with none.
    """
    job = work.job
    bare, watched = work.bare_answers(), fitter.config.monitors is not None
    own = CareSettings(work, job.preset, lambda _: fitter, diagnosis, bare, "monitors", True)
    with Fits(work.run, work.vlm) as fits:
        search = SettingsSearch(work, fits, QUICK if job.quick else FULL)
        wanted = own.wanted(search.size.settings, job.run.seed)
        with work.run.stage("settings"):
            found = search.of(NAME, wanted, own.made)
    repair = found.fit.defense
    if not isinstance(repair, Repair):
        raise FitError(str(found.fit.failed))
    selection = {"rule": _rule(search, watched), "candidates": _rows(found), "screened": []}
    if watched:
        selection["monitors"] = to_tree(own.monitors(found.options).told())
    repair = own.remembering(repair, found.options)
    return Candidate(in_words(found.options), repair, own.fitter(found.options)), selection


def in_words(options: Options) -> str:
    """Settings as a candidate is called."""
    return ", ".join(f"{name} = {value}" for name, value in told(options).items())


def _rule(search: SettingsSearch, watched: bool) -> str:
    budget = search.budget()
    monitors = "; monitors are chosen on the whole of validation" if watched else ""
    return (
        f"{budget.rule}, of {budget.settings} settings at most, the preset's own first, each asked "
        f"the same {budget.answers} validation examples{monitors}"
    )


def _rows(found: Searched) -> list[dict[str, Any]]:
    """Every setting that could be fitted, as a candidate of the report."""
    rows = [{"name": "none", **shown(found.rates[UNDEFENDED]), "chosen": False}]
    for each in found.tried:
        if each.failed is None:
            rates = shown(found.rates[setting_name(NAME, each.options)])
            rows.append({"name": in_words(each.options), **rates, "chosen": each.chosen})
    return rows
