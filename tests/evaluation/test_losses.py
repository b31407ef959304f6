"""What searches came to: read from the files of an attack's folder, and when one still fell."""

from __future__ import annotations

import json

import pytest

from care.attacks.facts import (
    AttackFacts,
    MadePicture,
    PictureFacts,
    SavedImage,
    SuffixFacts,
    SuffixState,
    SuffixTrace,
)
from care.attacks.presets import PRESETS
from care.errors import DataError
from care.evaluation.losses import (
    CURVES,
    POINTS,
    AttackLosses,
    LossCurve,
    losses_in,
    still_falling,
)
from care.typed import from_tree, to_tree

FLAT = (1.0, *[0.5] * 60)
FELL = tuple(2.0 - 0.02 * step for step in range(60))


def put(folder, name, facts):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(to_tree(facts)), encoding="utf-8")


def picture(variant, losses, request="*"):
    return MadePicture(
        variant=variant, request=request, file="p.png", sha256="", loss=losses[-1], losses=losses
    )


@pytest.mark.parametrize(
    ("losses", "fell"),
    [
        (FLAT, False),
        (FELL, True),
        ((0.5, 0.4), True),  # too short to be flat
        ((0.5, 0.009), False),  # nothing left to gain
        ((*FELL, *[1.0] * 25), False),  # flat for as long as a descent goes on
        ((*FELL, *[0.82] * 24), True),
        (tuple(2.0 - 0.001 * step for step in range(1000)), True),  # by 2 % in a tenth, not in 25
    ],
)
def test_a_search_still_fell_if_it_was_not_flat_at_its_end(losses, fell):
    assert still_falling(losses) is fell


def test_images_pictures_and_suffixes_are_read_by_defense(tmp_path):
    attacks = tmp_path / "attacks"
    image = SavedImage(sha256="", loss=0.3, losses=FELL)
    put(
        attacks / "pgd-32" / "0",
        "attack.json",
        AttackFacts(config=PRESETS["pgd-32"], images={"image": image}),
    )
    pictures = (picture("plain", FLAT), picture("list", FELL, "r1"))
    put(
        attacks / "registers" / "1",
        "pictures.json",
        PictureFacts(made_of={}, steps=60, pictures=pictures),
    )
    put(
        attacks / "gcg" / "1",
        "suffixes.json",
        SuffixFacts(made_of={}, steps=3, loss=0.4, suffixes={"r0": " x", "r1": " y", "r2": " z"}),
    )
    for number, losses in enumerate([(0.5, 0.4, 0.2), (0.6, 0.5, 0.45)]):
        state = SuffixState([1], [1], losses[-1], losses)
        put(attacks / "gcg" / "1", f"state-{number}.json", SuffixTrace("", state))
    found = losses_in(tmp_path, ["none", "care"])
    assert [(f.attack, f.defense, f.searches, f.falling) for f in found] == [
        ("gcg", "care", 2, 2),
        ("pgd-32", "none", 1, 1),
        ("registers", "care", 2, 1),
    ]
    assert [c.name for c in found[0].curves] == ["suffix, r0", "suffix, r1"]
    assert [(c.name, c.loss, c.falling) for c in found[2].curves] == [
        ("plain", 0.5, False),
        ("list, r1", FELL[-1], True),
    ]
    curve = found[1].curves[0]
    assert (curve.name, curve.steps, curve.loss) == ("image", 60, 0.3)
    assert len(curve.losses) == POINTS and (curve.losses[0], curve.losses[-1]) == (2.0, FELL[-1])
    assert list(curve.losses) == sorted(curve.losses, reverse=True)
    assert [from_tree(AttackLosses, to_tree(f)) for f in found] == found


def test_of_many_searches_some_have_a_curve_and_all_are_counted(tmp_path):
    made = tuple(picture("plain", FELL if k % 2 else FLAT, f"r{k}") for k in range(61))
    facts = PictureFacts(made_of={}, steps=60, pictures=made)
    put(tmp_path / "attacks" / "pictured" / "0", "pictures.json", facts)
    (found,) = losses_in(tmp_path, ["none"])
    assert (found.searches, found.falling, len(found.curves)) == (61, 30, CURVES)
    assert (found.curves[0].name, found.curves[-1].name) == ("plain, r0", "plain, r60")


def test_what_kept_no_losses_is_left_out(tmp_path):
    assert losses_in(tmp_path, ["none"]) == []
    image = SavedImage(sha256="", loss=0.3)
    facts = AttackFacts(config=PRESETS["pgd-32"], images={"image": image})
    put(tmp_path / "attacks" / "pgd-32" / "0", "attack.json", facts)
    assert losses_in(tmp_path, ["none"]) == []
    (tmp_path / "attacks" / "pgd-32" / "0" / "attack.json").write_text("{}")
    with pytest.raises(DataError, match="resume to make it again"):
        losses_in(tmp_path, ["none"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"falling": 3}, "fewer than fell"),
        ({"curves": [0, 0, 0]}, "fewer than fell or have a curve"),
        ({"curves": [{"losses": []}]}, "has 0 points of 3 steps"),
        ({"curves": [{"losses": [1.0] * 4}]}, "has 4 points of 3 steps"),
    ],
)
def test_contradictions_are_refused(change, words):
    curve = to_tree(LossCurve("a", 3, 0.5, (1.0, 0.5), True))
    tree = to_tree(AttackLosses("gcg", "none", 2, 1, ()))
    curves = [curve | (each or {}) for each in change.get("curves", [])]
    with pytest.raises(DataError, match=words):
        from_tree(AttackLosses, tree | change | {"curves": curves})
