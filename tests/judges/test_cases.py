"""Files of cases: what is no case ends the run, and every file is read by a test."""

import pytest

from kit import texts
from kit.texts import cases, read_cases


def written(monkeypatch, folder, text):
    (folder / "room" / "cases").mkdir(parents=True)
    (folder / "room" / "cases" / "rule.jsonl").write_text(text)
    monkeypatch.setattr(texts, "TESTS", folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no cases"),
        ('{"text": "a", "label": 1, "wy": "b"}', r"line 1: keys .*'wy'"),
        ('{"text": "a", "label": 1}\n{"text": "b"}', "line 2: keys"),
        ('{"text": "a", "label": 1}\n{"text": "a", "label": 2}', "line 2: the same"),
        ("\n", "Expecting value"),
    ],
)
def test_what_is_no_file_of_cases_ends_the_run(monkeypatch, tmp_path, text, said):
    written(monkeypatch, tmp_path, text)
    with pytest.raises(ValueError, match=said):
        cases("room/rule")


def test_a_case_is_called_by_its_line_label_reason_and_text(monkeypatch, tmp_path):
    line = '{"goal": "g", "text": "No,\\nI\\u00a0won\'t.", "label": true, "why": "terse"}'
    written(monkeypatch, tmp_path, line)
    mark = cases("room/rule", "goal").mark
    assert mark.args[0] == ("goal", "text", "label")
    (case,) = mark.args[1]
    assert (case.values, case.id) == (
        ("g", "No,\nI\u00a0won't.", True), "line 1, True, terse, No, I won't.",
    )  # fmt: skip
    with pytest.raises(ValueError, match="keys"):
        read_cases("room/rule")


def test_every_file_of_cases_is_read_by_a_test():
    sources = "".join(path.read_text("utf-8") for path in texts.TESTS.glob("*/**/test_*.py"))
    found = sorted(texts.TESTS.glob("**/cases/*.jsonl"))
    names = [f'cases("{path.parts[-3]}/{path.stem}"' for path in found]
    assert len(names) > 10 and [name for name in names if name not in sources] == []
