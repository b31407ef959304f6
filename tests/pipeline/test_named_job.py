"""The main job on suites by name and file, judged by others than the rules, whole and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from care.data.digests import is_same
from care.defenses.material import CLASSES
from care.evaluation.config import PARTS, UNDEFENDED, JudgingSpec, read_config
from care.evaluation.job import asked_suites
from care.evaluation.results import Results
from care.pipeline import workflow
from care.pipeline.dry_run import dry_run
from care.runs.rows import Rows
from kit.jobs import a_job, own_files, parts, tiny_parts  # noqa: F401


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """Two files of attacks with the same ids, one to test and one of utility."""
    files = own_files(tmp_path)
    lines = [json.loads(line) for line in files["attacks"].read_text().splitlines()]

    def copy(name: str, word: str, count: int, **more: str | list[str]) -> str:
        changed = [
            line | {"prompt": f"{word} of {line['id']}", "goal": f"{word} {line['id']}"} | more
            for line in lines[:count]
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        return str(path)

    return {
        "attacks": (str(files["attacks"]), copy("worse", "worse", 40)),
        "benign": (str(files["benign"]),),
        "test": (copy("unseen", "unseen", 8),),
        "utility": (copy("useful", "good", 30, kind="benign", references=["to"]),),
        "judging": JudgingSpec(("toxic-words-standin", "rules")),
        "batch_size": 8,
        "max_new_tokens": 4,
        "limit": 60,
    }


@pytest.mark.slow
def test_the_first_judge_makes_the_report_and_all_judges_the_table(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    whole = workflow.repair(a_job(tmp_path / "run", **asked))
    suites = {suite["name"]: suite for suite in whole["suites"]}
    assert suites.keys() == {"attacks", "worse", "benign", "unseen", "useful"}
    assert suites["unseen"]["n"] == 8
    assert whole["manifest"]["judged_by"] == "toxic-words-standin"
    assert "judged by <b>toxic-words-standin</b>" in (tmp_path / "run" / "report.html").read_text()
    card = json.loads((tmp_path / "run" / "table.json").read_text())
    assert card["judges"].keys() == {"toxic-words-standin", "rules"}
    rows = Rows(tmp_path / "run" / "rows.jsonl").all()
    stages = {stage.name: stage.answers for stage in dry_run(a_job(tmp_path / "x", **asked)).stages}
    main = [row for row in rows if row["defense"] in (UNDEFENDED, "care", *PARTS)]
    assert stages["evaluation"] == len(main)  # as the dry run counts it
    assert stages["controls"] >= len(rows) - len(main) > 0
    by_rules = Results(rows).rate("attacks", "none").rate
    assert by_rules > 0.3 > suites["attacks"]["before"]["rate"]  # nonsense holds no toxic word
    fitted = json.loads((tmp_path / "run" / "material.json").read_text())
    names = {key.partition("/")[0] for name in CLASSES for key, _ in fitted[name]}
    assert names == {"attacks", "worse", "benign"}

    config = read_config(whole["manifest"])
    found = asked_suites(tmp_path / "run", config, [row["suite"] for row in rows])
    examples = {(suite.name, e.id): e for suite in found for e in suite}
    assert all(is_same(row, examples[row["suite"], row["example"]]) for row in rows)
    again = workflow.repair(a_job(tmp_path / "run", resume=True, **asked))
    assert parts(again) == parts(whole)
    assert Rows(tmp_path / "run" / "rows.jsonl").all() == rows
