"""Further studies of a comparison: figures on made-up answers, and what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from care.evaluation.comparison_studies import (
    Studies,
    UnseenFamily,
    corrected,
    merged,
    pooled_rates,
)
from care.evaluation.comparison_table import CARE
from care.evaluation.results import Results
from care.statistics.intervals import holm
from care.statistics.paired import paired_difference
from care.typed import Misfit, from_tree, to_tree
from kit.comparisons import ASKED, REFITTED, rows, studies

FOUND = studies()


def test_an_unseen_family_is_set_against_the_fit_that_saw_it_and_corrected_over_all() -> None:
    goals = [str(place) for place in range(20)]
    expected = [
        paired_difference(
            np.array([o == "h" for o in ASKED[name][0]]),
            np.array([o == "h" for o in REFITTED[f"{name}, without pgd <b>"]]),
            goals,
        )
        for name in (CARE, "careful")
    ]
    adjusted = holm([one.p for one in expected])
    for row, one, p_holm in zip(FOUND.families, expected, adjusted, strict=False):
        against = row.against
        assert against is not None
        assert (against.change, against.p, against.p_holm) == (one.interval, one.p, p_holm)
    care, careful, harsh = FOUND.families
    assert care.seen and care.unseen and (care.seen.rate, care.unseen.rate) == (0.05, 0.6)
    assert careful.unseen and careful.unseen.rate == 0.65
    assert harsh.failed and harsh.unseen is None
    assert corrected((harsh,)) == (harsh,)


def test_rates_leave_out_the_baseline() -> None:
    found = pooled_rates(Results(rows()), CARE)
    assert [each and each.rate for each in found.values()] == [0.05, 1.0, 1.0]


def test_the_claims_say_what_each_study_found() -> None:
    unseen, needed, traded = FOUND.claims
    assert "at most +55 points" in unseen and "careful lets the most more through, +5" in unseen
    assert "found here for 1 of 1 families" in unseen
    assert "0.60 on 64, 0.05 on 250" in needed and "can't be fitted on 16" in needed
    assert "careful from 1.00 to 0.00, answering 1.00 and 0.00" in traded and "0 to 4" in traded
    alike = [
        replace(f, against=f.against and replace(f.against, p_holm=0.2)) for f in FOUND.families
    ]
    told = merged(FOUND, replace(FOUND, families=tuple(alike)), ("families",)).claims[0]
    assert "found here for 0 of 1 families" in told
    unfit = tuple(point for point in FOUND.sizes if point.failed)
    told = merged(FOUND, replace(FOUND, sizes=unfit), ("sizes",)).claims[1]
    assert told == "CARE couldn't be fitted on any number of requests."


def test_studies_of_an_earlier_attempt_are_kept_where_they_are_not_asked_for_again() -> None:
    now = Studies(FOUND.defenses, (), ("New.",), families=FOUND.families[:1])
    found = merged(FOUND, now, ("families",))
    assert found.families == FOUND.families[:1] and found.sizes == FOUND.sizes
    assert found.strengths == FOUND.strengths and found.notes == ("New.",)
    assert len(found.claims) == 3 and "of the rivals" not in found.claims[0]
    alone = merged(None, Studies((CARE,), (), ()), ())
    assert alone.claims == () and not {"families", "sizes", "strengths"} & to_tree(alone).keys()


def test_figures_of_what_could_not_be_fitted_are_refused() -> None:
    assert from_tree(Studies, to_tree(FOUND)) == FOUND
    with pytest.raises(Misfit, match="unseen"):
        UnseenFamily(CARE, "pgd", "too few", None, FOUND.families[0].unseen, None).check()
    with pytest.raises(Misfit, match="asr"):
        replace(FOUND.sizes[1], failed="too few").check()
