"""One matrix over all defenses, and what finds and refuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from care.data.example import Example
from care.defenses import Defense, load_defense, register
from care.defenses.base import answers_under, reads_undefended, registered
from care.defenses.known import DEFENSES, kind_of
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, UsageError
from care.models.vlm import VLM
from kit import tiny
from kit.repairs import a_gate, made
from kit.tiny import hooks_of

MADE: dict[str, Callable[[VLM], Defense]] = {
    "repair": lambda vlm: Repair((made(), made(seed=1, gate=a_gate(), scopes=("decision",)))),
    "neurons": lambda vlm: NeuronSuppression.of(vlm, [(1, 3), (2, 5)], "zero"),
}
"""One of each class of the package; rivals have a matrix of their own (`rivals/test_all.py`)."""

EXAMPLES = tiny.mixed_examples(4)


def texts(vlm: VLM, defense: Defense | None) -> list[str]:
    return [a.text for a in answers_under(defense, vlm, EXAMPLES, max_new_tokens=4)]


def test_every_class_is_in_the_matrix_or_that_of_rivals():
    assert {name for name, place in DEFENSES.items() if ".rivals." not in place} == {*MADE}
    assert {*MADE} <= registered().keys()


@pytest.mark.parametrize("name", DEFENSES)
def test_each_is_registered_by_the_name_that_it_is_listed_by(name):
    kind = kind_of(name)
    assert kind is registered()[name] and kind.registered_as == name


@pytest.mark.parametrize("name", MADE)
def test_the_model_is_what_it_was_once_a_defense_is_taken_off(vlm, name):
    defense, batch = MADE[name](vlm), vlm.batch(EXAMPLES)
    before, hooks = vlm.forward(batch), hooks_of(vlm)
    weights = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    with defense.applied(vlm):
        assert not torch.equal(vlm.forward(batch), before)
    assert torch.equal(vlm.forward(batch), before) and hooks_of(vlm) == hooks
    assert all(torch.equal(weights[k], v) for k, v in vlm.model.state_dict().items())


@pytest.mark.parametrize("name", MADE)
def test_at_strength_zero_nothing_changes(vlm, name):
    defense, batch = MADE[name](vlm), vlm.batch(EXAMPLES)
    if not hasattr(defense, "with_strength"):
        pytest.skip(f"{name} has no strength")
    before = vlm.forward(batch)
    with defense.with_strength(0.0).applied(vlm):  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.equal(vlm.forward(batch), before)


@pytest.mark.parametrize("name", MADE)
def test_saved_and_loaded_it_does_the_same(vlm, name, tmp_path):
    defense = MADE[name](vlm)
    folder = defense.save(tmp_path / "kept")
    again = load_defense(str(folder), vlm)
    assert type(again) is type(defense) and again.name == defense.name
    assert again.digest() == defense.digest() and again.touches == defense.touches
    assert texts(vlm, again) == texts(vlm, defense)


# -- what a defense does by itself -----------------------------------------------------------------


class Nothing(Defense):
    name = "nothing"


def test_a_defense_that_overrides_nothing_does_nothing(vlm, tmp_path):
    defense = Nothing()
    assert texts(vlm, defense) == texts(vlm, None) and defense.digest() is None
    defense.check(vlm)
    for refused in (lambda: defense.save(tmp_path), lambda: Nothing.load(tmp_path)):
        with pytest.raises(UsageError, match="Nothing can't be stored; override save, load"):
            refused()
    with pytest.raises(UsageError, match="Nothing isn't fitted on requests"):
        Nothing.fit(vlm, [], [])


def test_prompts_are_shared_only_where_nothing_before_the_decision_can_differ():
    class Rewrites(Nothing):
        touches = "decision"

        def rewritten(self, example: Example) -> Example:
            return example

    class Answers(Nothing):
        touches = "decision"

        def answer(self, vlm, examples, **how):
            return super().answer(vlm, examples, **how)

    class Decides(Nothing):
        touches = "decision"

    assert reads_undefended(None) and reads_undefended(Decides())
    assert not any(map(reads_undefended, (Nothing(), Rewrites(), Answers())))


# -- names and folders -----------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_near_and_known_ones():
    with pytest.raises(UsageError, match=r"no defense 'repiar'.*neurons,.*mean repair\?"):
        load_defense("repiar")
    with pytest.raises(UsageError, match=r"'repair' isn't complete by its name.*Repair.fit"):
        load_defense("repair")


def test_what_no_defense_was_saved_in_is_refused(tmp_path):
    with pytest.raises(
        ArtefactError, match=r"none of defense.json, neurons.json, repair.json.* lies there"
    ):
        load_defense(tmp_path)
    with pytest.raises(ArtefactError, match="There is no artefact in"):
        load_defense(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match="There is no artefact in"):
        load_defense("./nowhere")


def test_a_defense_by_itself_or_of_another_model_is_told(vlm, tmp_path):
    defense = MADE["neurons"](vlm)
    file = defense.save(tmp_path / "kept") / "neurons.json"
    assert load_defense(file, vlm) == defense
    facts = MADE["repair"](vlm).save(tmp_path / "other") / "repair.json"
    with pytest.raises(ArtefactError, match="is a file: pass the folder"):
        load_defense(facts)
    tree = defense.to_json() | {"shape": [2, 3]}  # pyright: ignore[reportAttributeAccessIssue]
    file.write_text(str(tree))
    with pytest.raises(ArtefactError, match="isn't valid JSON"):
        load_defense(Path(file), vlm)


def test_a_registered_name_is_one_class(vlm):
    @register("mine")
    class Mine(Defense):
        def check(self, vlm: VLM) -> None:
            raise ArtefactError("made for another model")

    assert Mine.name == "mine" and isinstance(load_defense("mine"), Mine)
    with pytest.raises(ArtefactError, match="made for another model"):
        load_defense("mine", vlm)
    with pytest.raises(UsageError, match="'mine' is registered already"):
        register("mine")(Nothing)
    with pytest.raises(UsageError, match="is a class derived from"):
        register("yours")(object)  # pyright: ignore[reportArgumentType]
