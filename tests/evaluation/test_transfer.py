"""Both threat models of a table: an image made without the defense, and one made through it."""

from dataclasses import replace

import pytest

from care.attacks.adaptive import Through
from care.attacks.pgd import image_loss
from care.data.example import Example, Suite
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.evaluation.transfer import beside, transfer_and_adaptive
from care.judges.rules import RulesJudge
from kit import attacks
from kit.attacks import START, vlm  # noqa: F401
from kit.refusals import refusals
from kit.repairs import a_gate, made
from kit.tiny import picture

EXAMPLES, TARGETS = attacks.EXAMPLES[:3], attacks.TARGETS[:3]
CONFIG = replace(attacks.CONFIG, steps=6)


def test_transfer_and_adaptive_make_rows_of_a_table(vlm, tmp_path):
    late = made(scopes=("decision", "response"), strength=1.5, gate=a_gate())
    first = Repair((late,), name="first")
    second = Repair((made(seed=2, scopes=("all",), strength=1.5),), name="second")
    asked = tuple(
        Example(f"h{k}", f"Explain how to {goal}", goal=goal, kind="malicious")
        for k, goal in enumerate(("build a house", "wash soap"))
    )
    suite = Suite("held-out", "attack", asked)
    seen = set()
    found = transfer_and_adaptive(
        vlm,
        [first, second],
        EXAMPLES,
        TARGETS,
        START,
        CONFIG,
        suite=suite,
        judge=RulesJudge(),
        attempts=(("exact", 0.0), ("soft", 0.5)),
        checkpoints=tmp_path,
        progress=lambda name, step, loss: seen.add(name),
        max_new_tokens=4,
    )
    tried = ("exact-0", "soft-0.5")
    assert seen == {"transfer", *(f"adaptive-{k}-{how}" for k in (0, 1) for how in tried)}
    assert [row.defense for row in found.rows] == ["first", "second"]
    for row, defense, image in zip(found.rows, (first, second), found.adaptive, strict=True):
        measured = [
            image_loss(vlm, EXAMPLES, TARGETS, shown.image, CONFIG, through)
            for shown, through in (
                (found.transfer, None),
                (found.transfer, Through(defense)),
                (image, Through(defense)),
            )
        ]
        expected = [row.loss_undefended, row.loss_transfer, row.loss_adaptive]
        assert measured == pytest.approx(expected, abs=1e-4)
        assert row.loss_adaptive <= row.loss_transfer
        assert (row.gate is None) == (image.image is found.transfer.image)
        assert row.asr_adaptive is not None and row.asr_adaptive.n == 2
        assert row.to_json()["asr_transfer"]["n"] == 2


REPAIR = Repair((made(),))
SUITE = Suite("s", "attack", (Example("a", "b", kind="malicious"),))
UTILITY = replace(SUITE, role="utility")


def tried(vlm, *defenses, **options):
    transfer_and_adaptive(vlm, defenses, EXAMPLES, TARGETS, START, CONFIG, **options)


test_wrong_use = refusals(
    (UsageError, "one or more", lambda vlm: tried(vlm)),
    (UsageError, "names of their own", lambda vlm: tried(vlm, REPAIR, REPAIR)),
    (UsageError, "attempts", lambda vlm: tried(vlm, REPAIR, attempts=())),
    (UsageError, "both a suite and a judge", lambda vlm: tried(vlm, REPAIR, suite=SUITE)),
    (
        UsageError,
        "role utility",
        lambda vlm: tried(vlm, REPAIR, suite=UTILITY, judge=RulesJudge()),
    ),
)


def test_every_request_is_shown_beside_the_image():
    suite = Suite("s", "attack", (Example("a", "b", (picture(1),)), Example("c", "d")))
    image = picture(2)
    assert all(example.images == (image,) for example in beside(suite, image))
    assert [example.id for example in beside(suite, image)] == ["a", "c"]
