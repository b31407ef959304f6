"""One matrix over all rivals: put on and off, stored, refused, and what they declare.

A new rival gets a line in `FITTED`: what its fit is given beside the requests, small enough for a
tiny model. What is particular to one is in a file of its own beside this.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from care.data.contamination import goal_digests
from care.defenses import load_defense
from care.defenses.asking import Turns
from care.defenses.base import Defense, answers_under, overrides
from care.defenses.known import DEFENSES
from care.defenses.known import kind_of as known_kind
from care.defenses.steering import AtLayers
from care.errors import ArtefactError, CareError, FitError
from care.evaluation.leak_check import stated_goals
from care.models.vlm import VLM
from kit import fits, tiny
from kit.tiny import hooks_of

FITTED: dict[str, dict[str, Any]] = {
    "adashield-s": {},
    "alphasteer": {"depths": (0.5, 0.75)},
    "always-refuse": {},
    "astra": {"pictures": 2, "draws": 2, "masks": 16, "grid": 2},
    "autosteer": {"steps": 4, "strength": 1.0},
    "cast": {"depths": (0.5, 0.75)},
    "circuit-breakers": {"steps": 2, "rank": 2, "rate": 1e-2, "batch_size": 4},
    "cmrm": {},
    "cpca": {"rank": 2},
    "difference-of-means": {},
    "ecso": {"threshold": -1.0},
    "eta-lite": {"threshold": -1.0},
    "hiddendetect": {"false_alarms": 0.5},
    "iti": {"share": 0.2},
    "jpeg": {"quality": 10},
    "leace": {},
    "noise": {"sigma": 0.3},
    "random-monitor": {"rate": 0.5},
    "random-subspace": {"rank": 2},
    "refusal-direction": {"most_divergence": np.inf, "least_induced": -np.inf},
    "refusal-pairs": {"steps": 2, "rank": 2, "rate": 1e-2, "batch_size": 4},
    "resize": {"least": 0.5},
    "safesteer": {"rank": 4},
    "self-reminder": {},
    "shiftdc": {"caption_tokens": 3},
    "smoothing": {"copies": 2},
    "spo-vlm": {"steps": 2},
    "text-first": {},
    "vlm-guard": {},
}

MATERIAL = fits.material(6, 6)
ATTACKS = [example for example, _ in (*MATERIAL.complied, *MATERIAL.refused)]
BENIGN = [example for example, _ in MATERIAL.answered]
EXAMPLES = [*tiny.mixed_examples(4), *ATTACKS[4:8]]


def kind_of(name: str) -> Any:
    return known_kind(name)


every = pytest.mark.parametrize("name", FITTED)
steering = pytest.mark.parametrize(
    "name", [name for name in FITTED if hasattr(kind_of(name), "with_strength")]
)
unfitted = pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in FITTED for option in kind_of(name).unfitted]
)
of_examples = pytest.mark.parametrize("name", [n for n in FITTED if kind_of(n).cost.needs])


def options(name: str, **others: Any) -> dict[str, Any]:
    """What a fit is given; the answers are known where it asks for them."""
    asks = "material" in inspect.signature(kind_of(name).fit).parameters
    return FITTED[name] | ({"material": MATERIAL} if asks else {}) | others


@cache
def fitted(name: str) -> Any:
    return kind_of(name).fit(tiny.tiny_vlm(), ATTACKS, BENIGN, **options(name))


def texts(vlm: VLM, defense: Defense | None, **how: Any) -> list[str]:
    how = {"max_new_tokens": 4} | how
    return [answer.text for answer in answers_under(defense, vlm, EXAMPLES, **how)]


def test_every_rival_is_in_the_matrix():
    assert {n for n, place in DEFENSES.items() if ".rivals." in place} == {*FITTED}


@every
def test_the_model_is_what_it_was_once_a_rival_is_taken_off(vlm, name):
    defense, batch = fitted(name), vlm.batch(EXAMPLES, ["I'm sorry."] * len(EXAMPLES))
    before, hooks = vlm.forward(batch), hooks_of(vlm)
    weights = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    with defense.applied(vlm):
        during = vlm.forward(batch)
    assert torch.equal(vlm.forward(batch), before) and hooks_of(vlm) == hooks
    assert all(torch.equal(weights[k], v) for k, v in vlm.model.state_dict().items())
    assert torch.isfinite(during).all()
    if overrides(defense, "applied"):
        assert not torch.equal(during, before)


@steering
def test_at_strength_zero_nothing_changes(vlm, name):
    defense = fitted(name).with_strength(0.0)
    batch = vlm.batch(EXAMPLES)
    before = vlm.forward(batch)
    with defense.applied(vlm):
        assert torch.equal(vlm.forward(batch), before)
    assert texts(vlm, defense) == texts(vlm, None)


@unfitted
def test_options_that_do_not_enter_a_fit_may_be_replaced_after_it(vlm, name, option):
    before = getattr(fitted(name), option)
    values = kind_of(name).searched.get(option, (0.25,))
    other = next(value for value in values if value != before)
    again = kind_of(name).fit(vlm, ATTACKS, BENIGN, **options(name, **{option: other}))
    assert again.digest() == replace(fitted(name), **{option: other}).digest()
    assert again.digest() != fitted(name).digest()


def test_strength_enters_no_fit_that_trains_nothing():
    named = {name for name in FITTED if "strength" in kind_of(name).unfitted}
    assert named == {
        n for n in FITTED if issubclass(kind_of(n), AtLayers) and not kind_of(n).cost.trains
    }


@every
def test_saved_and_loaded_it_does_the_same(vlm, name, tmp_path):
    defense = fitted(name)
    folder = defense.save(tmp_path / "kept")
    again = load_defense(str(folder), vlm)
    assert type(again) is type(defense) and again.name == defense.name == name
    assert again.digest() == defense.digest() and again.touches == defense.touches
    assert texts(vlm, again) == texts(vlm, defense)


@every
def test_answers_do_not_depend_on_the_batch(vlm, name):
    defense = fitted(name)
    assert texts(vlm, defense, batch_size=1) == texts(vlm, defense, batch_size=4)


@every
def test_it_says_what_it_is_and_what_is_searched(name):
    kind = kind_of(name)
    assert kind.__doc__ and kind.paper and inspect.getmodule(kind).__doc__
    known = inspect.signature(kind.fit if kind.cost.needs else kind).parameters
    assert kind.searched.keys() <= known.keys()
    assert all(len(set(values)) == len(values) > 1 for values in kind.searched.values())


@every
def test_it_states_the_goals_that_it_was_fitted_on(name):
    stated, why = stated_goals(fitted(name).manifest)
    if not kind_of(name).cost.needs:
        assert stated is None and why
    else:
        assert stated == goal_digests([*ATTACKS, *BENIGN]).keys()


@pytest.mark.parametrize("name", [n for n in FITTED if issubclass(kind_of(n), Turns)])
def test_known_answers_are_revised_as_if_it_had_asked(vlm, name):
    defense, how = fitted(name), {"max_new_tokens": 4}
    bare = vlm.answers(EXAMPLES, **how)
    found = defense.revised(vlm, EXAMPLES, bare, **how)
    assert [answer.text for answer in found] == texts(vlm, defense)


@of_examples
def test_too_little_to_fit_on_is_one_sentence(vlm, name):
    needs = kind_of(name).cost.needs
    with pytest.raises(FitError) as told:
        kind_of(name).fit(vlm, [], [], **FITTED[name])
    assert "\n" not in str(told.value)
    for need, part in (
        ("pictures of attacks", "complied"),
        ("pictures of benign requests", "answered"),
    ):
        if need not in needs:
            continue
        plain = tuple((e, a) for e, a in getattr(MATERIAL, part) if not e.images)
        lacking = replace(MATERIAL, **{part: plain})
        given = [[e for e in side if not e.images] for side in (ATTACKS, BENIGN)]
        known = options(name)
        known |= {"material": lacking} if "material" in known else {}
        with pytest.raises(FitError, match="picture"):
            kind_of(name).fit(vlm, *given, **known)


@of_examples
def test_another_model_is_refused(name):
    with pytest.raises(ArtefactError, match="for this model"):
        fitted(name).check(VLM(*tiny.tiny_gemma3()))


@every
def test_a_damaged_one_is_refused(name, tmp_path):
    folder = fitted(name).save(tmp_path)
    file = folder / "defense.json"
    file.write_text(file.read_text().replace('"format"', '"other": 1, "format"', 1))
    with pytest.raises(CareError, match="don't have the digest"):
        load_defense(folder)
