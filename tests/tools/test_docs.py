"""The pages that are written from the code say what the code says."""

from care.report.described import types_of
from care.report.schema import Report
from tools.docs import PAGE, rendered


def test_the_tables_of_a_report_are_those_of_its_types() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert rendered(text) == text, "run python tools/docs.py"
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("<!-- table: ")}
    assert shown <= {kind.__name__ for kind in types_of(Report)} and len(shown) > 10
