"""The pages of a run, made again from its stored files: what `care report` does.

    report.json      a main job          report.html
    table.json       an evaluation       report.html, or table.html beside a main job's
                     a comparison        report.html
    ablation.json    an ablation         ablation.html
    diagnosis.json   a diagnosis         diagnosis.html

Files of older versions are read as they are (`care.typed`). Nothing is asked of a model, and no
torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from care.diagnosis.results import JSON_NAME as DIAGNOSIS
from care.diagnosis.results import Diagnosis
from care.errors import DataError
from care.report import ablation, comparison, evaluation
from care.report.files import JSON_NAME, load_report, write_diagnosis, write_report
from care.runs.manifest import MANIFEST, read_manifest
from care.runs.reading import read_json


def pages_of(run: Path) -> list[Path]:
    """Write the pages of a run's folder, or of one of the files above; their paths.

    DataError where there is none of them, or for one that care doesn't write, and StorageError if a
    page can't be written.
    """
    if run.is_dir():
        files = [run / name for name in _MAKERS if (run / name).is_file()]
    else:
        files = [run] if run.is_file() else []
    if not files:
        raise DataError(
            f"There is nothing to make a page of in {run}; pass the folder of a finished run, or "
            f"its {', '.join(_MAKERS)}."
        )
    return [_MAKERS.get(file.name, _report)(file) for file in files]


def _report(file: Path) -> Path:
    return write_report(load_report(file), file.parent)[0]


def _table(file: Path) -> Path:
    """Of an evaluation or a comparison, as its schema says."""
    found = read_json(file, "table", otherwise="pass the table.json of a finished run")
    return (comparison if comparison.is_comparison(found) else evaluation).page_of(file)


def _diagnosis(file: Path) -> Path:
    manifest = file.with_name(MANIFEST)
    model = read_manifest(manifest).get("model") if manifest.is_file() else None
    return write_diagnosis(Diagnosis.load(file), file.parent, f"Diagnosis of {model or 'a model'}")


_MAKERS: dict[str, Callable[[Path], Path]] = {
    JSON_NAME: _report,
    evaluation.NAME: _table,
    ablation.NAME: ablation.page_of,
    DIAGNOSIS: _diagnosis,
}
