"""Defenses stored by their fields: round trips, damage, and what the class refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest

from care.defenses import load_defense, register
from care.defenses.stored import FACTS, NUMBERS, StoredDefense, digest_of, fitted_on, numbers_of
from care.errors import ArtefactError, FitError
from care.evaluation.leak_check import stated_goals
from care.models.vlm import VLM
from kit import fits, tiny


@register("stored-example")
@dataclass(frozen=True, eq=False, kw_only=True)
class Kept(StoredDefense):
    """Some of everything."""

    rows: np.ndarray
    layers: tuple[int, ...]
    how: Literal["one", "other"] = "one"
    share: float | None = None


def kept(**options) -> Kept:
    return Kept(**({"rows": np.arange(6.0).reshape(2, 3), "layers": (1, 2)} | options))


def restated(folder, change):
    """The folder with its facts changed and a digest that agrees."""
    facts = change(json.loads((folder / FACTS).read_text()))
    facts["sha256"] = digest_of(facts, (folder / NUMBERS).read_bytes())
    (folder / FACTS).write_text(json.dumps(facts))
    return folder


def test_what_was_saved_is_read_back(tmp_path):
    made = kept(how="other", share=0.5, manifest={"fitted_on": {"examples": 3}})
    again = load_defense(made.save(tmp_path))
    assert isinstance(again, Kept) and again.name == "stored-example"
    assert (again.layers, again.how, again.share) == ((1, 2), "other", 0.5)
    assert again.manifest == made.manifest and again.digest() == made.digest()
    np.testing.assert_array_equal(again.rows, made.rows)
    assert again.rows.dtype == np.float32 and numbers_of(Kept) == ("rows",)


@pytest.mark.parametrize(
    "other",
    [
        {"rows": np.zeros((2, 3))},
        {"layers": (2, 1)},
        {"share": 0.1},
        {"name": "x"},
        {"manifest": {"a": 1}},
    ],
)
def test_the_digest_is_of_all_of_it(other):
    assert kept().digest() == kept().digest() != kept(**other).digest()


def test_damage_is_one_sentence(tmp_path):
    folder = kept().save(tmp_path / "a")
    numbers = (folder / NUMBERS).read_bytes()
    (folder / NUMBERS).write_bytes(numbers[:-1] + b"\x01")
    with pytest.raises(ArtefactError, match=r"the digest that defense\.json states"):
        load_defense(folder)
    (folder / NUMBERS).unlink()
    with pytest.raises(ArtefactError, match=r"numbers\.safetensors can't be read"):
        load_defense(folder)
    (folder / FACTS).write_text("[]")
    with pytest.raises(ArtefactError, match="has format None of a defense"):
        load_defense(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts | {"format": 2}, "has format 2 of a defense"),
        (lambda facts: facts | {"defense": "nobody"}, "'nobody', which is not among "),
        (lambda facts: facts | {"settings": {}}, "`settings.layers` is missing; fit it again"),
        (lambda facts: facts | {"manifest": 3}, "is malformed"),
        (
            lambda facts: {k: v for k, v in facts.items() if k != "name"},
            "malformed .it lacks 'name'",
        ),
        (lambda facts: facts | {"defense": "astra"}, "`settings"),
    ],
)
def test_other_facts_are_refused(tmp_path, change, said):
    folder = restated(kept().save(tmp_path), change)
    with pytest.raises(ArtefactError, match=said):
        load_defense(folder)


def test_a_folder_of_another_class_is_refused(tmp_path):
    kind = type("Other", (Kept,), {"registered_as": "another"})
    with pytest.raises(ArtefactError, match="is 'stored-example', not 'another'"):
        kind.load(kept().save(tmp_path))


def test_other_numbers_are_refused(tmp_path):
    folder = kept().save(tmp_path)
    names = (folder / NUMBERS).read_bytes().replace(b'"rows"', b'"cols"')
    (folder / NUMBERS).write_bytes(names)
    with pytest.raises(ArtefactError, match="holds the numbers cols in place of rows"):
        load_defense(restated(folder, dict))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(FitError, match="numbers 'rows' of the defense stored-example aren't all"):
        kept(rows=np.array([[np.nan]]))


def test_it_is_held_to_its_model_and_states_its_goals(vlm):
    asked = fits.asked("a", 3, "malicious", False, 0)
    made = kept(manifest=fitted_on(vlm, asked))
    made.check(vlm)
    stated, _ = stated_goals(made.manifest)
    assert stated is not None and len(stated) == made.manifest["fitted_on"]["examples"] == 3
    with pytest.raises(
        ArtefactError, match=r"the defense stored-example was fitted on.*fit it for"
    ):
        made.check(VLM(*tiny.tiny_gemma3()))
    other = made.manifest["model"] | {"revision": "abc"}
    with pytest.warns(UserWarning, match="fitted on another revision"):
        replace(made, manifest={"model": other}).check(vlm)
