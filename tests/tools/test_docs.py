"""The pages that are written from the code say what the code says."""

import pytest

from care.defenses.known import DEFENSES
from care.evaluation.attack_scores import Threat
from tools import docs
from tools.docs import PAGE, RIVALS, known, rendered, rendered_rivals


def test_the_tables_of_the_files_are_those_of_their_types() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert rendered(text) == text, "run python tools/docs.py"
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("<!-- table: ")}
    assert shown <= known().keys() and len(shown) > 10
    assert {"Report", "Scorecard", "Ablation"} <= shown


def test_the_page_of_rivals_is_what_their_modules_say() -> None:
    text = RIVALS.read_text(encoding="utf-8")
    assert rendered_rivals(text) == text, "run python tools/docs.py"
    told = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert told == sorted(name for name, place in DEFENSES.items() if ".rivals." in place)


def test_two_types_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Threat", (Threat,), {})
    monkeypatch.setattr(docs, "types_of", lambda file: [Threat, other])
    with pytest.raises(TypeError, match="one name: Threat"):
        known()
