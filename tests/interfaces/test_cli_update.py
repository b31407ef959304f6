"""What `care update` says of an update, sentence by sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from care.defenses.repair.folding import Folded
from care.interfaces.cli.commands.update import told
from care.pipeline.update import ChannelChange, MonitorChange, Update
from care.statistics.intervals import Interval

FOLDED = Folded(12, 3, 0, 0, {"novel": 12}, {}, {})
UPDATE = Update(
    FOLDED,
    20,
    Interval(-0.25, -0.45, -0.05),
    0.021,
    (ChannelChange("2.layer_out", "text", {"old": 0.5}, {"old": 0.4, "novel": 0.7}, 0.0, 0.01),),
    (MonitorChange("request", 0.75, 0.8),),
)


def test_a_plain_update_is_four_sentences():
    assert told(UPDATE) == [
        "Folded in: 12 attacks that worked, 3 that were refused, 0 benign requests.",
        "Attack success on 20 attacks changes by -25 points [-45, -5], p = 0.021.",
        "The gate at 2.layer_out (text) opens for old 0.50 → 0.40, novel 0.70.",
        "The monitor of the request alarms above 0.800 (0.750 before).",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"held_out": False}, "too few goals to keep half apart"),
        ({"leaking": 5}, "5 of the attacks asked have goals that the repair was fitted on before"),
        ({"folded": replace(FOLDED, known=4)}, "0 benign requests; 4 were known."),
        ({"folded": replace(FOLDED, waiting={"few": 3})}, "few: 3 attacks that worked are too few"),
        ({"folded": replace(FOLDED, unserved={"b": 2})}, "no channel acts on 2 of the attacks"),
        (
            {"channels": (ChannelChange("2.layer_out", "text", {}, {}, None, None),)},
            "opens for all",
        ),
    ],
)
def test_what_should_be_known_of_it_is_said(changed, said):
    assert said in "\n".join(told(replace(UPDATE, **changed)))


def test_of_a_single_goal_no_change_is_told():
    assert not any("Attack success" in line for line in told(replace(UPDATE, change=None, p=None)))
