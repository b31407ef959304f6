"""The page docs/adding-a-defense.md: its code runs as it stands, on the tiny model."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from care.data.example import Example, Suite
from care.defenses import load_defense
from care.defenses.base import answers_under, reads_undefended
from kit import tiny

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-defense.md"
WANTED = ("none", "steering", "reminder", "second-look")


def requests(word: str, kind: str, count: int = 6) -> list[Example]:
    return [
        Example(f"{word}{i}", f"{word} thing {i}?", goal=f"{word} {i}", kind=kind)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def page():
    """What the page defines, after all its code has run; its first block names what is given."""
    given, *blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    attacks, benign = requests("bad", "malicious"), requests("good", "benign")
    names = {"vlm": tiny.tiny_vlm(), "attacks": attacks, "benign": benign}
    names["suite"] = Suite("asked", "attack", tuple(attacks))
    assert set(re.findall(r"^(\w+) = ", given, re.MULTILINE)) == names.keys()
    module = ModuleType("the_page")  # where dataclasses look for the names in their annotations
    vars(module).update(names)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "the_page", module)
        exec("\n".join(blocks), vars(module))
        yield vars(module)


def test_each_of_its_defenses_is_evaluated(page):
    table = page["table"]
    assert table.defenses == list(WANTED)
    answers = {name: [r["response"] for r in table.rows if r["defense"] == name] for name in WANTED}
    for said in answers.values():
        assert len(said) == len(page["suite"]) and None not in said
    assert answers["reminder"] != answers["none"]


def test_its_defenses_are_asked_as_they_are_meant_to_be(page):
    vlm, example = page["vlm"], page["attacks"][0]
    steering, reminder, look = (page[name] for name in ("Steering", "Reminder", "SecondLook"))
    assert reads_undefended(page["steering"])
    assert not reads_undefended(reminder()) and not reads_undefended(look())
    how = {"max_new_tokens": 4}
    bare, reminded = (answers_under(d, vlm, [example], **how)[0] for d in (None, reminder()))
    assert reminded.prompt_tokens > bare.prompt_tokens
    asked = []
    answering = vlm.answers

    def says_yes(examples, **options):
        asked.append([e.prompt for e in examples])
        found = answering(examples, **options)
        return [page["replace"](a, text="Yes.") for a in found] if len(asked) == 2 else found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vlm, "answers", says_yes)
        (answer,) = look().answer(vlm, [example], **how)
    assert answer.text.startswith("I'm sorry") and bare.text in asked[1][0]
    assert steering(2, (0.0,) * tiny.WIDTH).digest() != page["steering"].digest()


def test_they_are_loaded_by_name_or_folder(page, tmp_path):
    steering = page["steering"]
    assert load_defense(steering.save(tmp_path / "kept"), page["vlm"]) == steering
    assert isinstance(load_defense("reminder"), page["Reminder"])
    off, (example,) = page["replace"](steering, strength=0.0), page["attacks"][:1]
    batch = page["vlm"].batch(example)
    before = page["vlm"].forward(batch)
    with off.applied(page["vlm"]):
        assert torch.equal(page["vlm"].forward(batch), before)
    with steering.applied(page["vlm"]):
        assert not torch.equal(page["vlm"].forward(batch), before)
