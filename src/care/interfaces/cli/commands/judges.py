"""The commands on judges: `care list judges` and `care check judge`."""

# No `from __future__ import annotations`: typer reads the annotations when a command is called.
import json
from pathlib import Path
from typing import Annotated

import typer

from care.evaluation.config import RULES, JudgingSpec
from care.interfaces.cli.options import takes
from care.interfaces.cli.registry import command
from care.interfaces.cli.shared import hide_loading_bars
from care.interfaces.cli.tables import print_table, show_reports
from care.typed import to_tree


@command("list judges")
def list_judges() -> None:
    """Every judge, what it decides and needs, and its options."""
    from care.judges.registry import JUDGES

    cells = ([name, entry.about, ", ".join(entry.options)] for name, entry in JUDGES.items())
    print_table(["judge", "what it decides", "options"], cells)


@command("check judge")
@takes(JudgingSpec, without=("labels", "margin"))
def check_judge(
    judging: JudgingSpec,
    *,
    labels: Annotated[
        Path,
        typer.Argument(help="Answers labelled by hand (.jsonl).", exists=True, dir_okay=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, wrong answers too.")] = False,
) -> None:
    """How far judges agree with answers that were labelled by hand."""
    from care.judges import registry
    from care.judges.labels import read_labels, with_labels

    rows = read_labels(labels)
    for wanted in judging.judges:
        registry.check_judge(wanted)
    if judging.judges != (RULES,):
        hide_loading_bars()
    reports = [with_labels(rows, registry.load_judge(wanted)) for wanted in judging.judges]
    if as_json:
        print(json.dumps(to_tree(reports), indent=1, ensure_ascii=False))
    else:
        show_reports(reports)
