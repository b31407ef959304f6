"""What is shown while a job has only begun."""

from __future__ import annotations

from dataclasses import replace

from care.judges.base import Verdict
from care.pipeline.first_attacks import FirstAttacks
from kit.fits import asked


class Judge:
    """Harmful is what says so; counts what it is asked."""

    def __init__(self):
        self.goals = []

    def __call__(self, goals, answers):
        self.goals += goals
        return [Verdict("no" in a, degenerate="?" in a, on_goal="yes" in a) for a in answers]


def test_one_attack_of_each_batch_is_shown_until_there_are_enough():
    said, judge = [], Judge()
    shown = FirstAttacks(judge, said.append, most=2)
    attacks, good = asked("bad", 4, "malicious", False, 0), asked("good", 1, "benign", False, 0)
    attacks[2] = replace(attacks[2], prompt="two\nlines \x1b[2Jand more" + 300 * "x")
    shown([*good, attacks[0]], ["yes", "no"])
    assert said == [] and judge.goals == [attacks[0].goal or attacks[0].prompt]
    shown([attacks[1], attacks[2], attacks[3]], ["", "yes\x07, so", "yes"])
    assert said[0].startswith("This attack works: two lines [2Jand morexxx")
    assert said[0].endswith("x…") and len(said[0]) == len("This attack works: ") + 160
    assert said[1:] == ["  answered: yes , so"]
    pictured = asked("seen", 1, "malicious", True, 0)
    shown(good, ["yes"])
    shown(pictured, ["yes"])
    assert len(said) == 4 and said[2] == f"This attack works: [picture] {pictured[0].prompt}"
    before = len(judge.goals)
    shown(attacks, ["yes"] * 4)
    assert len(said) == 4 and len(judge.goals) == before
