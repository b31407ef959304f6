"""What the package says and finds, as one JSON file, to show that moving code changed nothing.

    python tools/fingerprint.py take FILE           names, help of every command, a whole job
    python tools/fingerprint.py run FOLDER FILE     the results of a finished run, such as a demo
    python tools/fingerprint.py compare A B         what differs; exits with 1 where anything does

The job is attack, diagnosis, repair and proof on a tiny random model with a made-up judge, and an
evaluation of the repair that it found: everything but the size is real. Two fingerprints taken on
one machine with as many threads (OMP_NUM_THREADS) are equal to the last bit. For another machine,
`--tolerance` says how far figures may lie apart, and digests are then not compared. Times, dates,
memory, the machine, versions and the command line are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from care.defenses import material
from care.evaluation import job as evaluation_job
from care.evaluation.config import EvaluationConfig
from care.interfaces.cli.registry import commands
from care.models.spec import ModelSpec
from care.pipeline import workflow as pipeline
from care.pipeline import workspace
from care.pipeline.config import RepairJob
from care.runs.spec import RunSpec
from kit import tiny
from kit.jobs import SMALL, MadeUpJudge, own_files

RESULTS = ("report.json", "diagnosis.json", "table.json")
"""Files of a run that hold what it found."""

PASSING = frozenset(
    {"command", "cost", "created", "date", "machine", "peak_memory_gib", "seconds", "versions"}
)
"""Keys of results that no two runs share."""


def take() -> dict[str, Any]:
    """The fingerprint of the package that is imported."""
    with TemporaryDirectory() as folder, contextlib.chdir(folder):  # paths are part of what is told
        return {"names": names(), "help": helps(), "job": tiny_job(Path())}


def names() -> dict[str, Any]:
    """The public names: functions with their signature, classes with that of what they offer."""
    import care

    return {name: _offered(getattr(care, name)) for name in sorted(care.__all__)}


def _offered(found: Any) -> Any:
    if not inspect.isclass(found):
        return str(inspect.signature(found)) if callable(found) else type(found).__name__
    members = {"(": str(inspect.signature(found))}
    for name in sorted(name for name in dir(found) if not name.startswith("_")):
        member = inspect.getattr_static(found, name)
        member = getattr(member, "__func__", member)
        called = inspect.isfunction(member)
        members[name] = str(inspect.signature(member)) if called else "attribute"
    if dataclasses.is_dataclass(found):
        members |= {field.name: str(field.type) for field in dataclasses.fields(found)}
    return members


def helps() -> dict[str, str]:
    """The help of `care` and of every command below it, 100 columns wide."""
    found = [entry.words for entry in commands()]
    found = sorted({(), *found, *((words[0],) for words in found)})
    shown = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(  # a process of its own, since typer reads its width when it is imported
        [sys.executable, "-c", _HELPS],
        input=json.dumps(found),
        env={**os.environ, **shown},
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        " ".join(("care", *words)): text
        for words, text in zip(found, json.loads(done.stdout), strict=True)
    }


_HELPS = """
import contextlib, io, json, sys
from care.interfaces.cli.app import main
found = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        if code := main([*words, "--help"]):
            sys.exit(code)
    found.append(said.getvalue())
json.dump(found, sys.stdout)
"""


def tiny_job(folder: Path, resume: bool = False) -> dict[str, Any]:
    """What `care repair`, `care diagnose` and `care evaluate` find on a tiny random model."""
    vlm = tiny.tiny_vlm()
    files = own_files(folder)
    own: dict[str, Any] = dict(files)

    def run(name: str) -> RunSpec:
        return RunSpec(folder / name, resume=resume, batch_size=8)

    def job(name: str) -> RepairJob:
        return RepairJob(run=run(name), test_length=8, max_new_tokens=4, **own)

    with (
        patch.object(ModelSpec, "load", lambda self: vlm),
        patch.object(workspace, "rules_for", lambda model: MadeUpJudge()),
        patch.object(pipeline, "DiagnosisConfig", lambda: SMALL),
        patch.object(material, "RulesJudge", MadeUpJudge),
        patch.object(evaluation_job, "rules_for", lambda model: MadeUpJudge()),
    ):
        pipeline.repair(job("repair"))
        pipeline.diagnose(job("diagnose"))
        evaluation_job.evaluate(
            EvaluationConfig(
                run=run("evaluate"),
                suites=tuple(map(str, files.values())),
                repairs=(folder / "repair" / "repair",),
                allow_leaks=True,
                limit=20,
                max_new_tokens=4,
            )
        )
    return {name: results(folder / name) for name in ("repair", "diagnose", "evaluate")}


def results(run: Path) -> dict[str, Any]:
    """What a run found: its JSON without what passes, and the files of its repair by digest."""
    found: dict[str, Any] = {
        name: lasting(json.loads((run / name).read_text("utf-8")))
        for name in RESULTS
        if (run / name).exists()
    }
    files = sorted(path for path in (run / "repair").rglob("*") if path.is_file())
    found["repair"] = {
        str(path.relative_to(run / "repair")): _file(path) for path in files if path.suffix != ".md"
    }
    return found


def _file(path: Path) -> Any:
    if path.suffix == ".json":
        return lasting(json.loads(path.read_text("utf-8")))
    return sha256(path.read_bytes()).hexdigest()


def lasting(value: Any) -> Any:
    """A tree without what no two runs share."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in PASSING}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def differences(one: Any, other: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Every place where two trees differ; figures by more than `tolerance` (relative)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                yield f"{path}/{key}: {'added' if key in other else 'gone'}"
            else:
                yield from differences(one[key], other[key], tolerance, f"{path}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, tolerance, f"{path}/{place}")
    elif isinstance(one, float) and isinstance(other, float) and tolerance:
        if not math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{path}: {one} became {other}"
    elif one != other and not (tolerance and _is_digest(one) and _is_digest(other)):
        yield f"{path}: {_short(one)} became {_short(other)}"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "…"


def main() -> int:
    parser = argparse.ArgumentParser(description="What the package says and finds.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("take").add_argument("file", type=Path)
    of_run = commands.add_parser("run")
    of_run.add_argument("folder", type=Path)
    of_run.add_argument("file", type=Path)
    compare = commands.add_parser("compare")
    compare.add_argument("files", type=Path, nargs=2)
    compare.add_argument("--tolerance", type=float, default=0.0)
    asked = parser.parse_args()
    if asked.command == "compare":
        one, other = (json.loads(path.read_text("utf-8")) for path in asked.files)
        found = list(differences(one, other, asked.tolerance))
        print("\n".join(found) or "equal")
        return bool(found)
    made = take() if asked.command == "take" else results(asked.folder)
    asked.file.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
